"""Models without a recipe, written in the schemes that are asked for; each file labelled with what it really holds.

Everything is built in a folder named NAME.partial, which becomes NAME when `schemes.json` is written: a folder that
looks whole is whole. No task is known here, so there is no bundle, no gate on answers and no report.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.export import kquants
from edgestill.export.contents import Contents
from edgestill.export.grid import Floats, Grid
from edgestill.export.model_folder import ADAPTER_WEIGHTS, Model, open_model
from edgestill.export.pack import BUILD_PACKAGES, COPIED
from edgestill.export.scheme_writer import Scheme, SchemeWriter
from edgestill.runtime import manifest
from edgestill.runtime.device import package_versions
from edgestill.runtime.errors import UsageError

MANIFEST_NAME = "schemes.json"
DEFAULT = ("onnx-q4", "gguf-q4_0")
SCHEMES = (
    Scheme("onnx-f32", "onnx/model.onnx", "f32"),
    Scheme("onnx-q8", "onnx/model_q8.onnx", "q8_0"),
    Scheme("onnx-q4", "onnx/model_q4.onnx", "q4_0"),
    Scheme("gguf-f16", "gguf/model-f16.gguf", "f32"),
    Scheme("gguf-q8_0", "gguf/model-q8_0.gguf", "q8_0"),
    Scheme("gguf-q4_0", "gguf/model-q4_0.gguf", "q4_0"),
    *(Scheme(f"gguf-{kind}", f"gguf/model-{kind}.gguf", "f32", kind) for kind in kquants.TYPES),
)
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SchemeFile:
    """One written file: `holds` counts its tensors by type, `importance` says whether texts weighted the rounding."""

    scheme: str
    path: str
    bytes: int
    sha256: str
    holds: dict[str, int]
    bits_per_weight: float
    importance: bool
    label: str


@dataclass(frozen=True)
class Exported:
    """The manifest `schemes.json`.

    `calibration` has the texts' file by its hash, and how many tokens of it were read; None where nothing was weighted.
    `tokenizer` is llama.cpp's name for the splitting rule (of an encoder, for the tokenizer), None without GGUF files.
    """

    name: str
    architecture: str
    parameters: int
    weights_sha256: str
    adapter_sha256: str | None
    calibration: dict[str, Any] | None
    tokenizer: str | None
    files: tuple[SchemeFile, ...]
    versions: dict[str, str]
    schema: str = "edgestill-schemes/1"


def find_schemes(names: Sequence[str]) -> list[Scheme]:
    """Schemes by name, each once, in the order of `SCHEMES`; GGUF's may come without `gguf-`. No name: both int4 files.

    Raises:
        UsageError: a name that is none.
    """
    known, found = {scheme.name: scheme for scheme in SCHEMES}, set()
    for name in names or DEFAULT:
        full = name if name in known else f"gguf-{name}"
        if full not in known:
            raise UsageError(f"no scheme {name!r}", f"choose from: {', '.join(known)}")
        found.add(known[full])
    return sorted(found, key=SCHEMES.index)


def export_schemes(
    source: Path, folder: Path, names: Sequence[str], base: Path | None, calibrate: Path | None, tell: Tell
) -> Exported:
    """Write the model in `source` as the schemes `names` into the new `folder`.

    Args:
        source: a Hugging Face folder, or a LoRA adapter's.
        folder: of the files; made here.
        names: such as q4_K_M; none for both int4 files.
        base: folder of the adapter's base; None for a model.
        calibrate: .txt or .jsonl of typical texts, which weight llama.cpp's rounding.
        tell: told (stage, steps done, steps).

    Raises:
        UsageError: a scheme or a model that is not written here, `folder` exists, or texts that nothing would read.
        GateFailed: a file holds other numbers than it should; nothing is left.
        EdgestillError: weights that are not whole, or a full disk.
    """
    schemes = find_schemes(names)
    texts = _texts(schemes, calibrate)
    if folder.exists():
        raise UsageError(f"{folder} exists already", "name a new folder with --out")
    if any(scheme.engine == "gguf" for scheme in schemes):
        kquants.load_llama()  # before any work
    model = open_model(source, base)
    _check_kind(model, schemes)
    partial = folder.with_name(folder.name + manifest.PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _copy_files(model, schemes, partial)
        found, tokens, writer, parameters = _write_files(model, schemes, partial, texts, tell)
        calibration = None
        if calibrate is not None:
            calibration = {"sha256": manifest.sha256_file(calibrate), "texts": len(texts), "tokens": tokens}
        exported = _describe(model, partial, found, parameters, calibration, writer.vocabulary)
        manifest.save(partial / MANIFEST_NAME, exported)
        partial.rename(folder)
    except OSError as error:
        raise manifest.disk_error(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported


def _texts(schemes: list[Scheme], calibrate: Path | None) -> list[str]:
    if calibrate is None:
        return []
    from edgestill.export.imatrix import read_texts

    if not any(scheme.llama for scheme in schemes):
        raise UsageError("--calibrate weights K-quants, and none is asked for", "add such as --scheme q4_K_M")
    return read_texts(calibrate)


def _check_kind(model: Model, schemes: list[Scheme]) -> None:
    unable = [scheme.name for scheme in schemes if model.is_encoder and scheme.kind == "f32"]
    if unable:
        able = ", ".join(scheme.name for scheme in SCHEMES if scheme.kind != "f32")
        raise UsageError(f"an encoder is not written as {unable[0]}", f"choose from: {able}")


def _copy_files(model: Model, schemes: list[Scheme], folder: Path) -> None:
    """config.json and the tokenizer's files; a chat template that is kept elsewhere gets a file of its own."""
    for engine in {scheme.engine for scheme in schemes}:
        (folder / engine).mkdir(parents=True)
    for name in COPIED:
        found = model.file(name)
        if found is not None:
            shutil.copyfile(found, folder / name)
    settings, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if settings.exists() and not template.exists():
        said = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(said, str):
            template.write_text(said, encoding="utf-8")


def _write_files(
    model: Model, schemes: list[Scheme], folder: Path, texts: list[str], tell: Tell
) -> tuple[list[tuple[Scheme, Contents, bool]], int, SchemeWriter, int]:
    """Every file, one grid after the other; what each holds, tokens of calibration, who wrote, and weights."""
    writer, found, tokens, parameters = SchemeWriter(model, folder), list[tuple[Scheme, Contents, bool]](), 0, 0
    for kind in dict.fromkeys(scheme.kind for scheme in schemes):
        tell("export", len(found), len(schemes))
        grid: Grid = writer.grid(kind)
        parameters = grid.parameters
        for scheme in schemes:
            if scheme.kind == kind and scheme.llama is None:
                found.append((scheme, writer.write(scheme, grid), False))
                tell("export", len(found), len(schemes))
        means: dict[str, Floats] = {}
        by_llama = [scheme for scheme in schemes if scheme.kind == kind and scheme.llama is not None]
        if by_llama and texts:
            means, tokens = writer.importance(grid, texts, lambda done, total: tell("calibrate", done, total))
        for scheme, contents in writer.write_llama(by_llama, grid, means) if by_llama else ():
            found.append((scheme, contents, bool(means)))
            tell("export", len(found), len(schemes))
    return found, tokens, writer, parameters


def _describe(
    model: Model,
    folder: Path,
    found: list[tuple[Scheme, Contents, bool]],
    parameters: int,
    calibration: dict[str, Any] | None,
    vocabulary: str | None,
) -> Exported:
    adapter = model.adapter
    return Exported(
        name=model.name,
        architecture=str(model.config["architectures"][0]),
        parameters=parameters,
        weights_sha256=model.weights_sha256,
        adapter_sha256=None if adapter is None else manifest.sha256_file(adapter / ADAPTER_WEIGHTS),
        calibration=calibration,
        tokenizer=vocabulary,
        files=tuple(_file(folder, *one) for one in sorted(found, key=lambda one: SCHEMES.index(one[0]))),
        versions=package_versions(BUILD_PACKAGES),
    )


def _file(folder: Path, scheme: Scheme, contents: Contents, importance: bool) -> SchemeFile:
    path = folder / scheme.path
    weighted = ", weighted by an importance matrix" if importance else ""
    return SchemeFile(
        scheme=scheme.name,
        path=scheme.path,
        bytes=path.stat().st_size,
        sha256=manifest.sha256_file(path),
        holds=contents.tensors,
        bits_per_weight=contents.bits_per_weight,
        importance=importance,
        label=f"{scheme.name.partition('-')[2]}: {contents.words()}{weighted}",
    )
