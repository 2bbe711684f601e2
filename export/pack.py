"""The verb of this room: read the weights, round to the grid, write the files, pass the gates, lay out the bundle.

Everything is built in a folder named NAME.partial, which becomes NAME when the last gate has passed: a folder that
looks whole is whole.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgestill.distill.run import MANIFEST_NAME as RUN_NAME
from edgestill.distill.run import StudentRun, load_run
from edgestill.export import cards, parity, web
from edgestill.export.build import Build, Compiler, engines_of
from edgestill.export.calibrate import calibrate
from edgestill.export.gates.answers import ANSWER_ROWS
from edgestill.export.gates.check import answer_checks, file_gates, torch_answers
from edgestill.export.gates.reference import golden_rows
from edgestill.export.gates.tokens import probe_texts
from edgestill.export.grid import Grid
from edgestill.export.plan import check_base
from edgestill.runtime import manifest
from edgestill.runtime.bundle import MANIFEST_NAME, ONNX, ONNX_LABELS, Artifact, Bundle, load_task
from edgestill.runtime.confidence import CALIBRATION_NAME
from edgestill.runtime.decode import Probabilities
from edgestill.runtime.device import package_versions
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.task import load_tokenizer

EXPORT_VERSION = 2  # raise it when the same student would give another bundle
GOLDEN_ROWS = 32
PROBE_ROWS = 4
BUILD_PACKAGES = ("edgestill", "torch", "transformers", "peft", "onnx", "onnxruntime", "gguf", "llama-cpp-python")
COPIED = (
    "task.json",
    "teacher_prompt.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
REFERENCE = ("test.jsonl", "teacher.jsonl", "predictions.jsonl")

Progress = Callable[[str, int, int], None]


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
    with contextlib.suppress(EdgestillError):  # no bundle there, or one of another version: it is built
        bundle = manifest.load(Bundle, folder / MANIFEST_NAME)
        if bundle.chain == chain:
            return bundle, True
    config, task = json.loads((student / "config.json").read_text(encoding="utf-8")), load_task(student)
    kind = "encoder" if task.is_head else "causal"
    check_base(config, kind)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    build = Build(run, student, partial, task, config, engines_of(export, task), export["quantization"])
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


def _build_in(build: Build, chain: dict[str, str], progress: Progress) -> Bundle:
    steps = len(("read", "grid", "write", "files", "torch", "engines"))
    rows = list(manifest.read_jsonl(build.student / "dev.jsonl"))
    texts = [row["text"] for row in rows]
    progress("export", 0, steps)
    compiler = _compiler(build)
    tokenizer = load_tokenizer(build.student)
    read = compiler.read([build.task.encode(tokenizer, text) for text in texts[:PROBE_ROWS]])
    progress("export", 1, steps)
    grid = compiler.grid()
    progress("export", 2, steps)
    _copy(build)
    probes = probe_texts(build.student, texts)
    tokens = compiler.write(grid, probes)
    _write_modelfile(build, tokenizer)
    progress("export", 3, steps)
    files = {engine: (build.path(engine), reader) for engine, reader in compiler.readers().items()}
    numbers = parity.check_same_numbers(grid, files)
    gates = file_gates(build, read, numbers, parity.tokenizer_probes(probes))
    progress("export", 4, steps)
    logits = compiler.logits(grid)
    wanted = torch_answers(logits, build.task, tokenizer, rows[:ANSWER_ROWS])
    manifest.write_jsonl(build.folder / "golden.jsonl", golden_rows(wanted[:GOLDEN_ROWS], build.task))
    progress("export", 5, steps)
    answers, more = answer_checks(build, grid, logits, wanted)
    gates += more
    _write_calibration(build, {engine: found.probabilities for engine, found in answers.items()}, rows)
    card = cards.model_card(build, grid, texts[0], compiler.for_other_programs(), gates)
    manifest.write_text_atomic(build.folder / "README.md", card)
    measured = {
        "numbers": numbers,
        "tokens": tokens,
        "answers": {engine: found.facts() for engine, found in answers.items()},
        "gates": [dataclasses.asdict(g) for g in gates],
    }
    bundle = _manifest(build, grid, compiler.context_tokens(), chain, {**read, **measured})
    manifest.save(build.folder / MANIFEST_NAME, bundle)
    progress("export", 6, steps)
    return bundle


def _compiler(build: Build) -> Compiler:
    if build.task.is_head:
        from edgestill.export.encoder import EncoderCompiler

        return EncoderCompiler(build)
    from edgestill.export.decoder import DecoderCompiler

    return DecoderCompiler(build)


def _copy(build: Build) -> None:
    (build.folder / "reference").mkdir(parents=True)
    for name in COPIED:
        if (build.student / name).exists():
            shutil.copyfile(build.student / name, build.folder / name)
    for name in REFERENCE:
        shutil.copyfile(build.student / name, build.folder / "reference" / name)
    web.complete_files(build)


def _write_modelfile(build: Build, tokenizer: Any) -> None:
    path, task = build.path("gguf"), build.task
    if path is not None and not task.is_head:
        text = cards.modelfile(task, path.name, tokenizer.id_to_token(task.eos_token_id))
        manifest.write_text_atomic(path.with_name("Modelfile"), text)


def _write_calibration(build: Build, answers: dict[str, Probabilities], rows: list[dict[str, Any]]) -> None:
    calibration = calibrate(answers, rows, build.task)
    if calibration is not None:
        manifest.save(build.folder / CALIBRATION_NAME, calibration)


def _manifest(
    build: Build, grid: Grid, context_tokens: int, chain: dict[str, str], parity_facts: dict[str, Any]
) -> Bundle:
    artifacts = []
    for engine in build.artifacts:
        path = build.path(engine)
        assert path is not None
        artifacts.append(
            Artifact(
                engine=engine,
                path=build.relative(path),
                quantization=build.quantization,
                accuracy_level=_accuracy_level(engine),
                bytes=path.stat().st_size,
                bits_per_weight=grid.bits_per_weight,
            )
        )
    files = sorted(p for p in build.folder.rglob("*") if p.is_file() and p.name != MANIFEST_NAME)
    return Bundle(
        name=build.run.name,
        created=_now().isoformat(timespec="seconds"),
        license_note=build.run.teacher["license_note"] or "",
        base={k: v for k, v in build.run.base.items() if k != "folder"},
        teacher=build.run.teacher,
        artifacts=tuple(artifacts),
        files={build.relative(p): manifest.sha256_file(p) for p in files},
        chain=chain,
        versions=package_versions(BUILD_PACKAGES),
        parity=parity_facts,
        rows=build.run.rows,
        context_tokens=context_tokens,
        parameters=grid.parameters,
        student=build.run.student,
    )


def _accuracy_level(engine: str) -> int | None:
    if engine not in (ONNX, ONNX_LABELS):
        return None
    from edgestill.export.onnx_graph import ACCURACY_LEVEL

    return ACCURACY_LEVEL


def _chain(run: StudentRun, student: Path, export: dict[str, Any]) -> dict[str, str]:
    """Hashes from the bundle back to the recipe; equal chains mean the same bundle."""
    return {
        "recipe_sha256": run.recipe_sha256,
        "annotations_sha256": run.annotations_sha256,
        "student_sha256": manifest.sha256_file(student / RUN_NAME),
        "export_sha256": manifest.sha256_json([EXPORT_VERSION, {**export, "artifacts": list(export["artifacts"])}]),
        "base_sha256": run.base["weights_sha256"],
    }


def _now() -> datetime.datetime:
    """The time of a build, or the one that builds for bit-equal results are told (reproducible-builds.org)."""
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(told) if told.isdigit() else time.time()
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
