"""Ask the teacher about every row and account for each: accepted, rejected with a reason, or pending.

The teacher keeps what it is told durably, so a killed run goes on where it stopped; the manifest comes last.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgestill.distill.corrections import Correction
from edgestill.distill.dataset import Dataset, Row
from edgestill.distill.ledger import Answer, Ledger, Tally
from edgestill.distill.recipe import Recipe
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
) -> tuple[Ledger, EdgestillError | None]:
    """Ask, then write `annotations.jsonl` (a row a line, with what became of it) and, last, the ledger.

    Args:
        recipe: for prices and the fingerprint of the inputs.
        data: all rows; test rows are asked too, for the report only.
        teacher: who answers.
        fits: whether the student can take a text whole; other rows are rejected before they are paid for.
        folder: created.
        progress: told (done, total) while rows are asked.
        corrections: labels by hand by row id; such rows are not asked.

    Returns:
        The ledger, and why the teacher stopped before the end, if it did. Both files are written in either case.
    """
    corrections = corrections or {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    asked = (row for row in data.rows if row.id not in corrections and fits(row.text))
    stopped = teacher.ask(asked, lambda done: progress(done, len(data.rows)))
    tally = Tally()
    manifest.write_jsonl(folder / ROWS_NAME, _records(data, teacher, fits, corrections, tally))
    ledger = tally.ledger(
        recipe,
        teacher.spending(),
        inputs_sha256=annotations_inputs(recipe, data, teacher.fingerprint, corrections),
        teacher=teacher.name,
        redacted=data.redacted,
        stopped=None if stopped is None else str(stopped),
        rows_sha256=manifest.sha256_file(folder / ROWS_NAME),
    )
    manifest.save(folder / MANIFEST_NAME, ledger)
    return ledger, stopped


def annotations_inputs(
    recipe: Recipe, data: Dataset, fingerprint: str, corrections: Mapping[str, Correction] | None = None
) -> str:
    """Hash of everything that the answers depend on; a price, a cap or a licence note is not among it."""
    rows = [(row.id, row.text, row.gold, row.split) for row in data.rows]
    asked = [
        recipe.sha256("task", "data"),
        [student.base for student in recipe.students],
        recipe.teacher.kind,
        recipe.teacher.model,
    ]
    by_hand = {name: dataclasses.astuple(one) for name, one in (corrections or {}).items()}
    return manifest.sha256_json([asked, list(recipe.teacher.redact), rows, fingerprint, by_hand])


def read_annotations(folder: Path) -> Iterator[tuple[Row, Answer]]:
    """(row, answer) for every row that was read; the answer is None while it is pending."""
    for record in manifest.read_jsonl(folder / ROWS_NAME):
        kind = {"accepted": Annotation, "rejected": Rejection}.get(record["status"])
        yield Row(**record["row"]), None if kind is None else kind(**record["answer"])


def accepted(folder: Path, split: str) -> list[tuple[Row, Annotation]]:
    """Rows of a split with a usable answer."""
    return [(r, a) for r, a in read_annotations(folder) if r.split == split and isinstance(a, Annotation)]


def _records(
    data: Dataset,
    teacher: Teacher,
    fits: Callable[[str], bool],
    corrections: Mapping[str, Correction],
    tally: Tally,
) -> Iterator[dict[str, Any]]:
    """A line for every row that was read, counted on the way."""
    answered = ((row, _answer(row, teacher, fits, corrections.get(row.id))) for row in data.rows)
    removed = ((row, Rejection(row.id, reason, "taken out before asking", "")) for row, reason in data.removed)
    for row, answer in itertools.chain(answered, removed):
        tally.add(row, answer)
        status = "pending" if answer is None else "accepted" if isinstance(answer, Annotation) else "rejected"
        said = None if answer is None else dataclasses.asdict(answer)
        yield {"row": dataclasses.asdict(row), "status": status, "answer": said}


def _answer(row: Row, teacher: Teacher, fits: Callable[[str], bool], correction: Correction | None) -> Answer:
    if not fits(row.text):
        return Rejection(row.id, "too_long", "the student cannot take this text whole; see data.too_long", "")
    if correction is not None:
        tokens: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "latency_ms": None}
        said = (row.id, correction.label, None, correction.rationale)
        return Annotation(*said, **tokens, raw="corrected by hand", corrected=True)
    return teacher.answer(row)
