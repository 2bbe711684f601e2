"""Ask the teacher about rows and account for each: accepted, rejected with a reason, pending, or not selected.

The teacher keeps what it is told durably, so a killed run goes on where it stopped; the manifest comes last.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgestill.distill.corrections import Correction
from edgestill.distill.dataset import Dataset, Row
from edgestill.distill.ledger import Answer, Ledger, NotSelected, Tally
from edgestill.distill.recipe import Recipe
from edgestill.distill.select.turns import Asked, Fresh, Settled, ask_in_turns, no_student
from edgestill.distill.teacher.protocol import Annotation, Rejection, Teacher
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

ROWS_NAME = "annotations.jsonl"
MANIFEST_NAME = "annotations.json"

Progress = Callable[[int, int], None]


def annotate(
    recipe: Recipe,
    data: Dataset,
    teacher: Teacher,
    fits: Callable[[str], bool],
    folder: Path,
    progress: Progress = lambda done, total: None,
    corrections: Mapping[str, Correction] | None = None,
    train: Fresh = no_student,
    base_sha256: str | None = None,
) -> tuple[Ledger, EdgestillError | None]:
    """Ask, then write `annotations.jsonl` (a row a line, with what became of it) and, last, the ledger.

    Args:
        recipe: for its strategy, for prices and the fingerprint of the inputs.
        data: all rows; test rows are asked too, for the report only.
        teacher: who answers; asked in several turns unless the strategy asks about all rows.
        fits: whether the student can take a text whole; other rows are rejected before they are paid for.
        folder: created.
        progress: told (done, total) while rows are asked.
        corrections: labels by hand by row id; such rows are not asked.
        train: gives the strategy a fresh student, trained on (row, answer) pairs from `base_sha256`; told what for.

    Returns:
        The ledger, and why the teacher stopped before the end, if it did. Both files are written in either case.
    """
    corrections = corrections or {}
    inputs = annotations_inputs(recipe, data, teacher.fingerprint, corrections, base_sha256)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    settled = functools.partial(_settled, fits=fits, corrections=corrections)
    if recipe.select.asks_all:
        rows = (row for row in data.rows if settled(row) is None)
        asked = Asked(teacher.ask(rows, lambda done: progress(done, len(data.rows))), teacher.answer)
    else:
        asked = ask_in_turns(recipe, data, teacher, settled, folder, inputs, progress, train)
    tally = Tally()
    manifest.write_jsonl(folder / ROWS_NAME, _records(data, settled, asked, tally))
    ledger = tally.ledger(
        recipe,
        teacher.spending(),
        inputs_sha256=inputs,
        teacher=teacher.name,
        redacted=data.redacted,
        stopped=None if asked.stopped is None else str(asked.stopped),
        rows_sha256=manifest.sha256_file(folder / ROWS_NAME),
        selection=asked.selection,
    )
    manifest.save(folder / MANIFEST_NAME, ledger)
    return ledger, asked.stopped


def annotations_inputs(
    recipe: Recipe,
    data: Dataset,
    fingerprint: str,
    corrections: Mapping[str, Correction] | None = None,
    base_sha256: str | None = None,
) -> str:
    """Hash of everything that the answers depend on; a price, a cap or a licence note is not among it.

    `base_sha256` is of the weights that a strategy's students start from, see `plan.strategy_base`.
    """
    rows = [(row.id, row.text, row.gold, row.split) for row in data.rows]
    asked: list[Any] = [
        recipe.sha256("task", "data"),
        [student.base for student in recipe.students],
        recipe.teacher.kind,
        recipe.teacher.model,
    ]
    if not recipe.select.asks_all:
        asked.append([*_chosen_by(recipe), base_sha256])
    by_hand = {name: dataclasses.astuple(one) for name, one in (corrections or {}).items()}
    return manifest.sha256_json([asked, list(recipe.teacher.redact), rows, fingerprint, by_hand])


def _chosen_by(recipe: Recipe) -> list[Any]:
    """What decides which rows are asked about: the strategy, and the first student where it trains one."""
    if not recipe.select.trains:
        return [recipe.sha256("select")]
    alone = recipe.alone(recipe.students[0])
    train = alone.train.model_copy(update={"quantize_aware": "auto"})  # of what comes after training
    sections = alone.model_copy(update={"train": train}).sha256("select", "student", "train")
    return [alone.the_student.training_version, sections]


def read_annotations(folder: Path) -> Iterator[tuple[Row, Answer]]:
    """(row, answer) for every row that was read; the answer is None while it is pending."""
    for record in manifest.read_jsonl(folder / ROWS_NAME):
        row, status = Row(**record["row"]), record["status"]
        if status == "not_selected":
            yield row, NotSelected(row.id)
            continue
        kind = {"accepted": Annotation, "rejected": Rejection}.get(status)
        yield row, None if kind is None else kind(**record["answer"])


def accepted(folder: Path, split: str) -> list[tuple[Row, Annotation]]:
    """Rows of a split with a usable answer."""
    return [(r, a) for r, a in read_annotations(folder) if r.split == split and isinstance(a, Annotation)]


def status_of(answer: Answer) -> str:
    """What became of a row, in a word, as it stands in annotations.jsonl."""
    return {Annotation: "accepted", Rejection: "rejected", NotSelected: "not_selected"}.get(type(answer), "pending")


def _records(data: Dataset, settled: Settled, asked: Asked, tally: Tally) -> Iterator[dict[str, Any]]:
    """A line for every row that was read, counted on the way."""
    answered = ((row, settled(row) or asked.answer(row)) for row in data.rows)
    removed = ((row, Rejection(row.id, reason, "taken out before asking", "")) for row, reason in data.removed)
    for row, answer in itertools.chain(answered, removed):
        tally.add(row, answer)
        said = dataclasses.asdict(answer) if isinstance(answer, Annotation | Rejection) else None
        yield {"row": dataclasses.asdict(row), "status": status_of(answer), "answer": said}


def _settled(
    row: Row, fits: Callable[[str], bool], corrections: Mapping[str, Correction]
) -> Annotation | Rejection | None:
    """What becomes of a row without asking; None: it is to be asked about."""
    if not fits(row.text):
        return Rejection(row.id, "too_long", "the student cannot take this text whole; see data.too_long", "")
    correction = corrections.get(row.id)
    if correction is None:
        return None
    tokens: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "latency_ms": None}
    said = (row.id, correction.label, None, correction.rationale)
    return Annotation(*said, **tokens, raw="corrected by hand", corrected=True)
