"""A strategy at work on a teacher: what it asks, what it is told, and its choices on disk. Ranks nothing.

A teacher gives its answers durably, so a run that is repeated pays nothing twice. Choices are kept beside them, so it
trains nothing twice either, and asks about the same rows also where a row that failed has an answer by then.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Dataset, Row
from edgestill.distill.ledger import Answer, NotSelected, Tally
from edgestill.distill.recipe import Recipe
from edgestill.distill.select.selection import Choice, Work
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.protocol import Annotation, Rejection, Spending, Teacher, Told
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

CHOICES_NAME = "choices.jsonl"
# a row's answer where nobody needs to be asked, None where somebody does
Settled = Callable[[Row], Annotation | Rejection | None]
Fresh = Callable[[Sequence[tuple[Row, Annotation]], str], Any]


@dataclass(frozen=True)
class Asked:
    """What asking came to: why it stopped early, if it did, what became of each row, and what was chosen.

    `selection` has `strategy`, `pool_rows` (those it could choose among), `asked_rows` and `rounds`: of each choice,
    in order, see `Choices.facts`. None where nothing was chosen.
    """

    stopped: EdgestillError | None
    answer: Callable[[Row], Answer]
    selection: dict[str, Any] | None = None


def no_student(pairs: Sequence[tuple[Row, Annotation]], words: str) -> Any:
    """Stands where a caller has no student to give; a strategy that wants one is then a mistake of the caller."""
    raise RuntimeError(f"{words}: wanted a student trained on {len(pairs)} rows, but no way to train one was given")


def ask_in_turns(
    recipe: Recipe,
    data: Dataset,
    teacher: Teacher,
    settled: Settled,
    folder: Path,
    inputs_sha256: str,
    progress: Callable[[int, int], None],
    train: Fresh,
) -> Asked:
    """Ask about development and test rows, then let the recipe's strategy ask about training rows; see `annotate`."""
    select = recipe.select
    pool = [row for row in data.split("train") if settled(row) is None]
    others = [row for row in data.rows if row.split != "train" and settled(row) is None]
    total = len(others) + len(select.likely(pool, len(recipe.task.labels)))
    turns = Turns(teacher, lambda done: progress(done, total))
    choices, words = Choices(folder, inputs_sha256, {row.id for row in pool}), [""]
    turns.ask(others)
    if turns.stopped is None:
        work = Work(
            pool=pool,
            known=_accepted(data.split("train"), settled),
            ask=turns.ask,
            train=lambda pairs: train(pairs, words[0]),
            dev=_accepted(data.split("dev"), lambda row: settled(row) or turns.answer(row)),
            choose=choices.choose,
            kept=choices.kept,
            tell=lambda said: words.__setitem__(0, said),
            amend=turns.amend,
            task=recipe.task,
        )
        select.acquire(work)
    asked_rows = sum(not isinstance(turns.answer(row), NotSelected) for row in pool)
    facts = {"strategy": select.strategy, "pool_rows": len(pool), "asked_rows": asked_rows}
    rounds = choices.facts({row.id: row for row in pool}, turns.answer)
    return Asked(turns.stopped, turns.answer, {**facts, "rounds": rounds})


def _accepted(rows: Sequence[Row], answer: Callable[[Row], Answer]) -> list[tuple[Row, Annotation]]:
    return [(row, said) for row in rows if isinstance(said := answer(row), Annotation)]


class Turns:
    """A teacher that is asked in several turns; what it said is kept in memory, for the rows asked about alone."""

    def __init__(self, teacher: Teacher, told: Told) -> None:
        """`told` hears how many rows were asked about so far, over all turns."""
        self.stopped: EdgestillError | None = None
        self._teacher, self._told = teacher, told
        self._answers: dict[str, Annotation | Rejection | None] = {}
        self._failed_in_a_row = 0

    def ask(self, rows: Sequence[Row], form: Form | None = None) -> Mapping[str, Annotation | Rejection | None]:
        """See `Work.ask`. Once the teacher has stopped it is asked no more, and tells only what it knows."""
        new = list({row.id: row for row in rows if row.id not in self._answers}.values())
        before = len(self._answers)
        if new and self.stopped is None:
            self.stopped = self._ask(new, lambda done: self._told(before + done), form)
        self._answers |= {row.id: self._teacher.answer(row) for row in new}
        self.stopped = self.stopped or self._given_up([self._answers[row.id] for row in new])
        return {row.id: self._answers[row.id] for row in rows}

    def _given_up(self, answers: Iterable[Annotation | Rejection | None]) -> EdgestillError | None:
        """Why to ask no more: the endpoint is down, which a turn of a few rows does not see."""
        detail = ""
        for answer in answers:
            if isinstance(answer, Rejection) and answer.reason == "endpoint_error":
                self._failed_in_a_row, detail = self._failed_in_a_row + 1, answer.detail
            else:
                self._failed_in_a_row = 0
        if not detail:
            return None
        from edgestill.distill.teacher.online import GIVE_UP_AFTER

        if self._failed_in_a_row < GIVE_UP_AFTER:
            return None
        return EdgestillError(
            f"{self._failed_in_a_row} rows in a row failed: {detail}", "the same command goes on when it answers again"
        )

    def _ask(self, rows: Sequence[Row], told: Told, form: Form | None) -> EdgestillError | None:
        if form is None:
            return self._teacher.ask(rows, told)
        if not isinstance(self._teacher, Reopened):
            raise RuntimeError("wanted a teacher that is opened anew for each turn: only then it takes another form")
        return self._teacher.ask(rows, told, form)

    def amend(self, answer: Annotation) -> None:
        """See `Work.amend`."""
        self._answers[answer.row_id] = answer

    def answer(self, row: Row) -> Answer:
        """What became of a row."""
        return self._answers.get(row.id, NotSelected(row.id))


class Reopened:
    """A `Teacher` that may be asked again and again: each turn opens it anew, since asking lets go of its endpoint."""

    def __init__(self, opened: Callable[[bool, Form | None], Teacher]) -> None:
        """`opened(first, form)` opens the teacher; it is told whether this is the first turn, and the turn's form."""
        self._opened, self._asked = opened, False
        self._now = opened(True, None)
        self.name, self.fingerprint = self._now.name, self._now.fingerprint

    def ask(self, rows: Iterable[Row], told: Told, form: Form | None = None) -> EdgestillError | None:
        """See `protocol.Teacher`; with a form `rows` are asked, and answered until the next turn, in its way."""
        if self._asked:
            self._now.close()  # first: it holds the folder's lock
            self._now = self._opened(False, form)
        self._asked = True
        return self._now.ask(rows, told)

    def answer(self, row: Row) -> Annotation | Rejection | None:
        """See `protocol.Teacher`."""
        return self._now.answer(row)

    def spending(self) -> Spending:
        """See `protocol.Teacher`; of all turns."""
        return self._now.spending()

    def spent_so_far(self) -> str:
        """See `protocol.Teacher`; of all turns."""
        return self._now.spent_so_far()

    def close(self) -> None:
        """See `protocol.Teacher`."""
        self._now.close()


class Choices:
    """The choices of a run, in order, in a file that outlives it."""

    def __init__(self, folder: Path, inputs_sha256: str, pool: Set[str]) -> None:
        """Read those that an earlier run of the same inputs made among the row ids of `pool`."""
        self._path, self._inputs = folder / CHOICES_NAME, inputs_sha256
        self.made: list[Choice] = []
        self._kept = list(_kept(self._path, inputs_sha256, pool))

    def choose(self, make: Callable[[], Choice]) -> Choice:
        """See `Work.choose`."""
        known = self.kept()
        self.made.append(make() if known is None else known)
        if known is None:
            manifest.write_jsonl(self._path, [self._record(choice) for choice in self.made])
        return self.made[-1]

    def kept(self) -> Choice | None:
        """See `Work.kept`."""
        place = len(self.made)
        return self._kept[place] if place < len(self._kept) else None

    def _record(self, choice: Choice) -> dict[str, Any]:
        return {"inputs_sha256": self._inputs, **dataclasses.asdict(choice)}

    def facts(self, rows: Mapping[str, Row], answer: Callable[[Row], Answer]) -> list[dict[str, Any]]:
        """Of each choice: its rows and what became of them, the tokens of their answers, what choosing measured."""
        found = []
        for choice in self.made:
            tally = Tally()
            for name in choice.ids:
                tally.add(rows[name], answer(rows[name]))
            tokens = tally.tokens
            counts = {"rows": tally.rows, "accepted": tally.accepted, "rejected": tally.rejected.total()}
            spent = {
                "prompt_tokens": None if tokens is None else tokens.prompt,
                "completion_tokens": None if tokens is None else tokens.completion,
            }
            found.append({**counts, **spent, **choice.facts})
        return found


def _kept(path: Path, inputs_sha256: str, pool: Set[str]) -> list[Choice]:
    if not path.exists():
        return []
    records = list(manifest.read_jsonl(path))
    choices = [Choice(tuple(record["ids"]), record["facts"], record["notes"]) for record in records]
    mine = all(record["inputs_sha256"] == inputs_sha256 for record in records)
    return choices if mine and all(name in pool for choice in choices for name in choice.ids) else []
