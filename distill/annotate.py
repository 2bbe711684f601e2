"""Ask the teacher about every row and account for each: accepted, rejected with a reason, or pending.

An answer is on disk before the next row is asked; the manifest comes last, so a killed run goes on where it stopped.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Dataset, Row
from edgestill.distill.recipe import Price, Recipe
from edgestill.distill.teacher import Annotation, Rejection, Teacher
from edgestill.runtime import manifest

ROWS_NAME = "annotations.jsonl"
MANIFEST_NAME = "annotations.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ledger:
    """The manifest of an annotations folder; accepted + rejected + pending == rows, always.

    `recorded_usd` is what the answers used here cost by the recipe's price when they were made, None without a price
    or without usage; `spent_usd` is what this run paid, which is 0 for recorded answers because nothing was sent.
    `usd_per_1000_requests` is the teacher's price of a request, over the test rows.
    """

    inputs_sha256: str
    recipe_sha256: str
    teacher: str
    rows: int
    accepted: int
    rejected: dict[str, int]
    pending: int
    requests: int
    cached: int
    spent_usd: str | None
    recorded_usd: str | None
    usd_per_1000_requests: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    splits: dict[str, int]
    rows_sha256: str
    schema: str = "edgestill-annotations/1"

    @property
    def summary(self) -> str:
        """The counts in one line."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items()) or "none"
        return f"{self.rows} rows: {self.accepted} accepted, rejected: {reasons}, {self.pending} pending"


def annotate(
    recipe: Recipe,
    data: Dataset,
    teacher: Teacher,
    fits: Callable[[str], bool],
    folder: Path,
    progress: Progress = lambda done, total: None,
) -> Ledger:
    """Write `annotations.jsonl` (a row a line, with its answer or its rejection) and, last, the ledger.

    Args:
        recipe: for prices and the fingerprint of the inputs.
        data: all rows; test rows are asked too, for the report only.
        teacher: who answers.
        fits: whether the student can take a text; rows that do not fit are rejected before they are paid for.
        folder: created; what an earlier, interrupted run left there is used when its inputs were the same.
        progress: told (done, total) after each row.
    """
    inputs = annotations_inputs(recipe, data, teacher)
    path = folder / ROWS_NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    done = _resume(path, inputs)
    try:
        with path.open("a", encoding="utf-8") as journal:
            if not done:
                _append(journal, {"inputs_sha256": inputs})
            for number, row in enumerate(data.rows, 1):
                if row.id not in done:
                    _append(journal, _answer(row, teacher, fits))
                progress(number, len(data.rows))
    except OSError as error:
        raise manifest.disk_error(path, error) from error
    ledger = _count(recipe, data, teacher, path, inputs)
    manifest.save(folder / MANIFEST_NAME, ledger)
    return ledger


def annotations_inputs(recipe: Recipe, data: Dataset, teacher: Teacher) -> str:
    """Hash of everything that the answers depend on; a price or a licence note is not among it."""
    rows = [(row.id, row.text, row.gold, row.split) for row in data.rows]
    asked = [recipe.sha256("task", "data"), recipe.student.base, recipe.teacher.kind, recipe.teacher.model]
    return manifest.sha256_json([asked, rows, teacher.fingerprint])


def read_annotations(folder: Path) -> Iterator[tuple[Row, Annotation | Rejection]]:
    """(row, answer) for every row, in the data set's order of asking."""
    for record in manifest.read_jsonl(folder / ROWS_NAME):
        if "row" in record:
            kind = Annotation if record["status"] == "accepted" else Rejection
            yield Row(**record["row"]), kind(**record["answer"])


def accepted(folder: Path, split: str) -> list[tuple[Row, Annotation]]:
    """Rows of a split with a usable answer."""
    return [(r, a) for r, a in read_annotations(folder) if r.split == split and isinstance(a, Annotation)]


def _answer(row: Row, teacher: Teacher, fits: Callable[[str], bool]) -> dict[str, Any]:
    answer: Annotation | Rejection
    if fits(row.text):
        answer = teacher.answer(row)
    else:
        answer = Rejection(row.id, "too_long", "the student cannot take this text whole; see data.too_long", "")
    status = "accepted" if isinstance(answer, Annotation) else "rejected"
    return {"row": dataclasses.asdict(row), "status": status, "answer": dataclasses.asdict(answer)}


def _append(journal: Any, record: dict[str, Any]) -> None:
    """One line, durable before we go on."""
    journal.write(json.dumps(record, ensure_ascii=False) + "\n")
    journal.flush()
    os.fsync(journal.fileno())


def _resume(path: Path, inputs: str) -> set[str]:
    """Ids that an interrupted run with the same inputs has answered; a torn last line is cut off."""
    if not path.exists():
        return set()
    whole = path.read_bytes().rpartition(b"\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    if not lines or lines[0].get("inputs_sha256") != inputs:
        path.unlink()
        return set()
    os.truncate(path, len(whole) + 1)
    return {"", *(record["row"]["id"] for record in lines[1:])}


def _count(recipe: Recipe, data: Dataset, teacher: Teacher, path: Path, inputs: str) -> Ledger:
    pairs = list(read_annotations(path.parent))
    answers = [a for _, a in pairs if isinstance(a, Annotation)]
    rejected = Counter(a.reason for _, a in pairs if isinstance(a, Rejection))
    rejected.update({reason: count for reason, count in data.removed.items() if count})
    rows = data.read_pool + data.read_test
    test = [a for r, a in pairs if r.split == "test" and isinstance(a, Annotation)]
    recorded, per_test = (
        cost_usd(recipe.teacher.price_usd_per_mtok, answers),
        cost_usd(recipe.teacher.price_usd_per_mtok, test),
    )
    return Ledger(
        inputs_sha256=inputs,
        recipe_sha256=recipe.sha256(),
        teacher=teacher.name,
        rows=rows,
        accepted=len(answers),
        rejected=dict(sorted(rejected.items())),
        pending=rows - len(answers) - rejected.total(),
        requests=0,
        cached=len(answers),
        spent_usd="0",
        recorded_usd=None if recorded is None else str(recorded),
        usd_per_1000_requests=None if per_test is None or not test else float(per_test / len(test) * 1000),
        prompt_tokens=_total([a.prompt_tokens for a in answers]),
        completion_tokens=_total([a.completion_tokens for a in answers]),
        splits=dict(Counter(r.split for r, a in pairs if isinstance(a, Annotation))),
        rows_sha256=manifest.sha256_file(path),
    )


def cost_usd(price: Price | None, answers: list[Annotation]) -> Decimal | None:
    """What the answers' tokens cost; None ("unknown", never 0) without a price or when any answer has no usage."""
    tokens_in, tokens_out = _total([a.prompt_tokens for a in answers]), _total([a.completion_tokens for a in answers])
    if price is None or tokens_in is None or tokens_out is None:
        return None
    return (tokens_in * price.input + tokens_out * price.output) / 1_000_000


def _total(counts: list[int | None]) -> int | None:
    """The sum, None as soon as one count is unknown."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
