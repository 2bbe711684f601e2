"""The verb of this room: merge, round to the grid, write both files, pass the gates, lay out the bundle.

Everything is built in a folder named NAME.partial, which becomes NAME when the last gate has passed: a folder that
looks whole is whole.
"""

import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgestill.distill.run import MANIFEST_NAME as RUN_NAME
from edgestill.distill.run import StudentRun, load_run
from edgestill.export import cards, parity
from edgestill.export.architecture import read_shape
from edgestill.export.grid import Grid
from edgestill.export.plan import check_base
from edgestill.runtime import decode, manifest
from edgestill.runtime.bundle import MANIFEST_NAME, Artifact, Bundle, load_task
from edgestill.runtime.device import package_versions
from edgestill.runtime.errors import GateFailed
from edgestill.runtime.task import Task, load_tokenizer

GOLDEN_ROWS = 32
PROBE_ROWS = 4
BUILD_PACKAGES = ("edgestill", "torch", "transformers", "peft", "onnx", "onnxruntime", "gguf", "llama-cpp-python")
COPIED = (
    "task.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
REFERENCE = ("test.jsonl", "teacher.jsonl", "predictions.jsonl")

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class _Build:
    """What every step of one export needs."""

    run: StudentRun
    student: Path
    folder: Path
    task: Task
    config: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def quantization(self) -> Any:
        return self.recipe["quantization"]

    def path(self, engine: str) -> Path | None:
        """Where an engine's file goes; None when the recipe does not ask for it."""
        names = {"onnx": f"onnx/model_{_short(self.quantization)}.onnx", "gguf": f"gguf/model-{self.quantization}.gguf"}
        return self.folder / names[engine] if engine in self.recipe["artifacts"] else None


def run_export(student: Path, export: dict[str, Any], folder: Path, progress: Progress) -> tuple[Bundle, bool]:
    """Build the bundle of a finished student run in `folder`; (bundle, whether it was done already).

    Args:
        student: folder of the StudentRun.
        export: the recipe's section: artifacts and quantization.
        folder: of the bundle.
        progress: told (stage, steps done, steps).

    Raises:
        GateFailed: an artifact does not hold or do what it should; nothing is left that looks like a bundle.
        EdgestillError: an unsupported base, a run that is not whole, a full disk.
    """
    run = load_run(student)
    chain = _chain(run, student, export)
    if (folder / MANIFEST_NAME).exists():
        bundle = manifest.load(Bundle, folder / MANIFEST_NAME)
        if bundle.chain == chain:
            return bundle, True
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    check_base(config)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    build = _Build(run, student, partial, load_task(student), config, export)
    try:
        bundle = _build_in(build, chain, progress)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise manifest.disk_error(folder, error) from error
        raise
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # first: a folder that is half deleted must not look whole
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return bundle, False


def _build_in(build: _Build, chain: dict[str, str], progress: Progress) -> Bundle:
    steps = len(("merge", "grid", "write", "numbers", "tokens", "answers"))
    texts = [row["text"] for row in manifest.read_jsonl(build.student / "dev.jsonl")]
    from edgestill.export.merge import load_grid, merge, to_grid

    progress("export", 0, steps)
    tokenizer = load_tokenizer(build.student)
    probes = [build.task.encode(tokenizer, text) for text in texts[:PROBE_ROWS]]
    model, merge_difference = merge(build.run, build.student, probes)
    progress("export", 1, steps)
    grid = to_grid(model, build.config, build.quantization)
    progress("export", 2, steps)
    _copy(build)
    tokens = _write_artifacts(build, grid, texts)
    progress("export", 3, steps)
    numbers = parity.check_same_numbers(grid, build.path("onnx"), build.path("gguf"))
    progress("export", 4, steps)
    golden = _golden(load_grid(model, grid), build.task, tokenizer, texts[:GOLDEN_ROWS])
    manifest.write_jsonl(build.folder / "golden.jsonl", golden)
    formats = [engine.upper() for engine in build.recipe["artifacts"]]
    card = cards.model_card(build.run, build.task, grid, formats, texts[0])
    manifest.write_text_atomic(build.folder / "README.md", card)
    bundle = _manifest(build, grid, chain)
    manifest.save(build.folder / MANIFEST_NAME, bundle)
    progress("export", 5, steps)
    answers = {engine: parity.check_answers(build.folder, engine) for engine in build.recipe["artifacts"]}
    facts = {"merge_max_logit_difference": merge_difference, "numbers": numbers, "tokens": tokens, "answers": answers}
    bundle = dataclasses.replace(bundle, parity=facts)
    manifest.save(build.folder / MANIFEST_NAME, bundle)
    progress("export", 6, steps)
    return bundle


def _copy(build: _Build) -> None:
    (build.folder / "reference").mkdir(parents=True)
    for name in COPIED:
        if (build.student / name).exists():
            shutil.copyfile(build.student / name, build.folder / name)
    for name in REFERENCE:
        shutil.copyfile(build.student / name, build.folder / "reference" / name)


def _write_artifacts(build: _Build, grid: Grid, texts: list[str]) -> dict[str, Any] | None:
    """Write the files the recipe asks for; what the tokenizer gate measured, None without GGUF."""
    onnx_path, gguf_path = build.path("onnx"), build.path("gguf")
    if onnx_path is not None:
        from edgestill.export.onnx_writer import write_onnx

        onnx_path.parent.mkdir()
        write_onnx(grid, onnx_path)
        relative = onnx_path.relative_to(build.folder).as_posix()
        manifest.write_json(build.folder / "genai_config.json", cards.genai_config(grid, build.task, relative))
    if gguf_path is None:
        return None
    from edgestill.export.gguf_writer import write_gguf
    from edgestill.export.tokenizer_writer import find_pre, mismatches, read_tokenizer

    probes = parity.tokenizer_probes(texts)
    pre = find_pre(build.student, build.config, build.task, probes)
    gguf_path.parent.mkdir()
    tokenizer = read_tokenizer(build.student, build.config, build.task, pre)
    write_gguf(grid, tokenizer, build.run.name, build.quantization, gguf_path)
    wrong = mismatches(gguf_path, load_tokenizer(build.student), probes)
    if wrong:
        raise GateFailed(f"{len(wrong)} of {len(probes)} texts get other token ids in llama.cpp, first {wrong[0]!r}")
    return {"pre": pre, "texts": len(probes), "mismatches": 0, "origin": build.run.base["tokenizer_origin"]}


def _golden(model: Any, task: Task, tokenizer: Any, texts: list[str]) -> list[dict[str, Any]]:
    """Label and probabilities of torch's float32 product with the grid's values, for each text."""
    import torch

    token_ids = [label.token_id for label in task.labels]
    rows = []
    for text in texts:
        ids = torch.tensor([task.encode(tokenizer, text)])
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1].numpy()
        chances = decode.label_probabilities(logits, token_ids)
        probabilities = dict(zip(task.label_names, map(float, chances), strict=True))
        rows.append({"text": text, "label": task.label_names[int(chances.argmax())], "probabilities": probabilities})
    return rows


def _manifest(build: _Build, grid: Grid, chain: dict[str, str]) -> Bundle:
    artifacts = []
    for engine in build.recipe["artifacts"]:
        path = build.path(engine)
        assert path is not None
        artifacts.append(
            Artifact(
                engine=engine,
                path=path.relative_to(build.folder).as_posix(),
                quantization=build.quantization,
                accuracy_level=_accuracy_level(engine),
                bytes=path.stat().st_size,
                bits_per_weight=grid.bits_per_weight,
            )
        )
    files = sorted(p for p in build.folder.rglob("*") if p.is_file() and p.name != MANIFEST_NAME)
    return Bundle(
        name=build.run.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        license_note=build.run.teacher["license_note"] or "",
        base={k: v for k, v in build.run.base.items() if k != "folder"},
        teacher=build.run.teacher,
        artifacts=tuple(artifacts),
        files={p.relative_to(build.folder).as_posix(): manifest.sha256_file(p) for p in files},
        chain=chain,
        versions=package_versions(BUILD_PACKAGES),
        parity={},
        rows=build.run.rows,
        context_tokens=read_shape(build.config).context,
        parameters=grid.parameters,
    )


def _accuracy_level(engine: str) -> int | None:
    if engine != "onnx":
        return None
    from edgestill.export.onnx_writer import ACCURACY_LEVEL

    return ACCURACY_LEVEL


def _chain(run: StudentRun, student: Path, export: dict[str, Any]) -> dict[str, str]:
    """Hashes from the bundle back to the recipe; equal chains mean the same bundle."""
    return {
        "recipe_sha256": run.recipe_sha256,
        "annotations_sha256": run.annotations_sha256,
        "student_sha256": manifest.sha256_file(student / RUN_NAME),
        "export_sha256": manifest.sha256_json({**export, "artifacts": list(export["artifacts"])}),
        "base_sha256": run.base["weights_sha256"],
    }


def _short(quantization: str) -> str:
    return quantization.split("_")[0]
