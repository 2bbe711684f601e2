"""One cell in a process of its own: annotate, train, answer the test rows, and say what it took. Compares nothing.

A cell's folder is that of an ordinary run, so what a killed cell had finished is kept, its paid answers above all.
"""

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgestill.distill.annotate import ROWS_NAME, read_annotations
from edgestill.distill.dataset import Row
from edgestill.distill.experiment.places import gold_of_pool
from edgestill.distill.ledger import Answer, Ledger, Tally
from edgestill.distill.pipeline import WEIGHTS_FOLDER, run_annotate, run_train
from edgestill.distill.plan import Plan, make_plan
from edgestill.distill.run import StudentRun
from edgestill.distill.teacher.budget import usd_text
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime import manifest
from edgestill.runtime.device import describe_device, package_versions, peak_rss_bytes
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.experiment_files import (
    ExperimentCell,
    RowIds,
    TeacherUse,
    cell_path,
    pack_bits,
    rows_path,
)
from edgestill.runtime.metrics import Estimate, wilson

RECIPE_NAME = "recipe.yaml"
PACKAGES = ("edgestill", "torch", "transformers", "peft", "scikit-learn")
USED_ROWS_NAME = "used_rows.jsonl"  # beside a gated student's weights, see `student.train`
# Rejections of rows that the teacher never saw.
NOT_ASKED = ("duplicate", "in_test", "near_test", "near_dev", "too_long")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a cell's process is told. `folder` is the cell's own, with its recipe; `out` the experiment's."""

    arm: str
    seed: int
    folder: str
    out: str
    metric: str
    recipe_sha256: str
    inputs_sha256: str
    gold_of_pool: str | None


def measure(wanted: Wanted) -> ExperimentCell:
    """Run what is missing of the cell, then write its rows' ids and, last, the cell.

    Raises:
        EdgestillError: what `annotate` and `train` raise; a cap that was reached, rows at which the endpoint failed, a
            test row without a gold label.
    """
    folder, out = Path(wanted.folder), Path(wanted.out)
    plan = make_plan(folder / RECIPE_NAME)
    start = time.perf_counter()
    (ledger, stopped), _ = run_annotate(plan, folder / "annotations", lambda *_: None)
    if stopped is not None:
        raise stopped
    if ledger.unfinished:  # fewer rows than another arm's
        failed = f"{ledger.unfinished} of {ledger.rows} rows have no answer: the endpoint failed"
        raise EdgestillError(failed, "the same command asks about them again")
    annotate_s = time.perf_counter() - start
    _check_gold(wanted, plan)
    run, _ = run_train(plan.students[0], folder / "annotations", folder / "student", lambda *_: None)
    ids, right = _judged(folder / "student", wanted.metric)
    hashed = manifest.sha256_json(ids)
    cell = _cell(wanted, plan, ledger, run, annotate_s, hashed, right)
    if not rows_path(out, hashed).exists():
        manifest.save(rows_path(out, hashed), RowIds(tuple(ids)))
    manifest.save(cell_path(out, wanted.arm, wanted.seed), cell)
    return cell


def _cell(
    wanted: Wanted, plan: Plan, ledger: Ledger, run: StudentRun, annotate_s: float, hashed: str, right: list[bool]
) -> ExperimentCell:
    answers = list(read_annotations(Path(wanted.folder) / "annotations"))
    used = _used(Path(wanted.folder) / "student", run)
    learnt, asked = _qualities(wanted, plan, answers, used)
    accuracy, device = wilson(sum(right), len(right)), describe_device()
    assert accuracy is not None  # `_judged` refuses a run without test rows
    return ExperimentCell(
        arm=wanted.arm,
        seed=wanted.seed,
        recipe_sha256=wanted.recipe_sha256,
        inputs_sha256=wanted.inputs_sha256,
        annotations_sha256=ledger.rows_sha256,
        rows=_row_counts(Path(wanted.folder) / "annotations" / ROWS_NAME, used),
        learning=_teacher_use(plan, (pair for pair in answers if pair[0].split != "test")),
        testing=_teacher_use(plan, (pair for pair in answers if pair[0].split == "test")),
        training_tokens=run.training["computed_tokens"],
        training_rows=run.training["rows"],
        annotate_s=annotate_s,
        train_s=run.training["seconds"],
        peak_rss_bytes=_peak(run),
        metric=wanted.metric,
        test_rows=len(right),
        row_ids_sha256=hashed,
        right=pack_bits(right),
        accuracy=accuracy,
        label_quality=learnt,
        asked_quality=asked,
        selection=ledger.selection,
        gate=run.training.get("gate"),
        device=f"{device.cpu_model}, {device.cores_usable} cores",
        packages=package_versions(PACKAGES),
    )


def _peak(run: StudentRun) -> int | None:
    """Of this process, or of the one that trained the student where it was kept."""
    found = [each for each in (peak_rss_bytes(), run.training["peak_rss_bytes"]) if each is not None]
    return max(found, default=None)


def _judged(student: Path, metric: str) -> tuple[list[str], list[bool]]:
    """(ids of the test rows, sorted; whether the student has each right)."""
    said = {p["row_id"]: p["label"] for p in manifest.read_jsonl(student / "predictions.jsonl") if _own(p)}
    if metric == "gold":
        wanted = {row["id"]: row["gold"] for row in manifest.read_jsonl(student / "test.jsonl")}
    else:
        wanted = {answer["row_id"]: answer["label"] for answer in manifest.read_jsonl(student / "teacher.jsonl")}
    ids = sorted(said)
    lacking = [one for one in ids if wanted.get(one) is None]
    if lacking or not ids:
        raise EdgestillError(f"{len(lacking)} of {len(ids)} test rows have no {metric} label", "mend data.test")
    return ids, [said[one] == wanted[one] for one in ids]


def _own(prediction: Mapping[str, Any]) -> bool:
    return bool(prediction["system"] == "student")


def _used(student: Path, run: StudentRun) -> set[str] | None:
    """Ids of the rows that a gate let through at least once; None where there is no gate: all are learnt from."""
    if run.training.get("gate") is None:
        return None
    place = student / WEIGHTS_FOLDER[run.recipe["student"]["kind"]]
    return {row["id"] for row in manifest.read_jsonl(place / USED_ROWS_NAME)}


def _row_counts(path: Path, used: set[str] | None) -> dict[str, int]:
    """What became of the training rows; those learnt from are the accepted ones, or fewer where a gate chose."""
    found = Counter[str]()
    for record in manifest.read_jsonl(path):
        answer, status = record["answer"] or {}, record["status"]
        if record["row"]["split"] != "train" or answer.get("reason") in NOT_ASKED:
            continue
        found[status] += 1
        found["asked"] += status in ("accepted", "rejected") and not answer.get("corrected")
    names = ("asked", "accepted", "rejected", "not_selected", "pending")
    return {**{name: found[name] for name in names}, "learnt_from": found["accepted"] if used is None else len(used)}


def _teacher_use(plan: Plan, answers: Iterable[tuple[Row, Answer]]) -> TeacherUse:
    """Tokens and USD of what was answered, by the ledger's own arithmetic."""
    tally = Tally()
    for row, answer in answers:
        if answer is not None:
            tally.add(row, answer)
    if tally.tokens is None:
        return TeacherUse(None, None, None)
    usd = tally.tokens.usd(plan.recipe.teacher.price_usd_per_mtok)
    return TeacherUse(tally.tokens.prompt, tally.tokens.completion, None if usd is None else usd_text(usd))


def _check_gold(wanted: Wanted, plan: Plan) -> None:
    """Before anything is trained: gold that belongs to no row is a mistake in its file."""
    if wanted.gold_of_pool is None:
        return
    gold = gold_of_pool(Path(wanted.gold_of_pool), plan.recipe.task)
    if not any(row.id in gold for row, _ in read_annotations(Path(wanted.folder) / "annotations")):
        raise EdgestillError(
            f"gold_of_pool: none of its {len(gold)} texts is a row's", "write each text as the student reads it"
        )


def _qualities(
    wanted: Wanted, plan: Plan, answers: Iterable[tuple[Row, Answer]], used: set[str] | None
) -> tuple[Estimate | None, Estimate | None]:
    """How often the labels are the pool's gold: of the rows learnt from and of all accepted ones."""
    if wanted.gold_of_pool is None:
        return None, None
    gold = gold_of_pool(Path(wanted.gold_of_pool), plan.recipe.task)
    right = {
        row.id: answer.label == gold[row.id]
        for row, answer in answers
        if row.split == "train" and isinstance(answer, Annotation) and row.id in gold
    }
    learnt = right if used is None else {one: right[one] for one in used if one in right}
    return wilson(sum(learnt.values()), len(learnt)), wilson(sum(right.values()), len(right))


if __name__ == "__main__":
    try:
        measure(Wanted(**json.loads(sys.argv[1])))
    except EdgestillError as told:
        print(told, file=sys.stderr)
        sys.exit(told.exit_code)
