"""A student that learns while it asks: at each step it names the rows of the batch that the teacher is asked about.

What is kept are the teacher's answers; the student is only there to choose. Knows no strategy but what its gate tells.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgestill.distill.dataset import Row
from edgestill.distill.student.gate import Account, Floats, shared_probabilities, weighted
from edgestill.distill.student.loop import Training
from edgestill.distill.student.processes import Processes
from edgestill.distill.teacher.protocol import Annotation, Rejection

Ask = Callable[[Sequence[Row]], Mapping[str, Annotation | Rejection | None]]


class AskingGate(Protocol):
    """A gate whose two halves are apart: before a row is asked about, and when it is answered."""

    def check(self, answers: Sequence[Annotation]) -> None:
        """See `gate.Gate`."""

    def wanted(self, chances: Floats) -> NDArray[np.bool_]:
        """(B,) of unanswered rows, those worth asking about, given the student's probabilities (B, L) now."""

    def answered(self, answers: Sequence[Annotation], chances: Floats) -> Floats:
        """(B,) how much each counts of those that were asked about and answered."""


@dataclass(frozen=True)
class AskedRows:
    """Ids of the rows that were asked about, in order; what choosing them took, for the manifest.

    `is_whole` is false where a row was left without an answer: the next run goes on there.
    """

    row_ids: tuple[str, ...]
    facts: dict[str, Any]
    is_whole: bool


class _NothingToAskError(Exception):
    """The pass may end: as many rows as allowed are asked about, or the teacher has stopped."""


def learn_while_asking(
    learner: Any, pool: Sequence[Row], gate: AskingGate, ask: Ask, epochs: float, most_rows: int | None
) -> AskedRows:
    """Train `learner` for `epochs` over the pool on the rows that it wants and that the teacher answers.

    Ends early when `most_rows` are asked about or a row is left without an answer. What is asked depends on the
    learner, the pool and the answers alone, so that running again with answers that are known asks for the same rows.

    Args:
        learner: a fresh student, see `train.train_learner`.
        pool: rows without answers, in reading order.
        gate: fresh.
        ask: see `select.selection.Work`.
        epochs: passes over the pool; a row that was asked about before costs nothing again.
        most_rows: None for as many as are wanted.

    Raises:
        EdgestillError: the gate cannot decide by the answers so far; told after the batch that made them so.
    """
    sieve, start = _RowsOnDemand(learner, pool, gate, ask, most_rows), time.perf_counter()
    train = learner.train.model_copy(update={"epochs": epochs})
    with contextlib.suppress(_NothingToAskError):
        Training[Any](learner, range(len(pool)), train, sieve=sieve).run()
    account = sieve.account
    facts = {
        "steps": len(account.selected),
        "trained_rows": len(account.used),
        "forward_tokens": account.forward_tokens,
        "seconds": time.perf_counter() - start,
    }
    return AskedRows(tuple(sieve.asked), facts, not sieve.stopped)


class _RowsOnDemand:
    """See `loop.Sieve`; over places in the pool."""

    def __init__(self, learner: Any, pool: Sequence[Row], gate: AskingGate, ask: Ask, most_rows: int | None) -> None:
        self.learner, self.pool, self.gate, self.ask = learner, pool, gate, ask
        self.most_rows = len(pool) if most_rows is None else min(most_rows, len(pool))
        self.asked: dict[str, None] = {}
        self._said: dict[str, Annotation] = {}
        self.stopped, self.account = False, Account()
        self._tokens = [int(learner.tokens(learner.question(row.text))) for row in pool]

    def tokens(self, place: int) -> int:
        """As a question, since nobody knows its answer."""
        return self._tokens[place]

    def sift(self, places: Sequence[int], processes: Processes) -> list[Any]:
        """Rows of the batch that were wanted, asked about, answered, and of which the teacher is sure."""
        if len(self.asked) >= self.most_rows:
            raise _NothingToAskError
        rows = [self.pool[place] for place in places]
        chances = shared_probabilities(self.learner, [row.text for row in rows], processes)
        chosen = self._affordable([i for i, wanted in enumerate(self.gate.wanted(chances)) if wanted], rows)
        answers = self._answers([rows[i] for i in chosen])
        known = {i: answer for i in chosen if isinstance(answer := answers[rows[i].id], Annotation)}
        weights = self._weights(list(known.values()), chances[list(known)])
        selected = [(rows[i], known[i], weight) for i, weight in zip(known, weights, strict=True) if weight > 0]
        self.account.add([row.id for row, _, _ in selected], sum(self._tokens[place] for place in places))
        return [weighted(self.learner.prepare(row.text, said, 1.0), weight) for row, said, weight in selected]

    def _answers(self, rows: Sequence[Row]) -> Mapping[str, Annotation | Rejection | None]:
        answers = self.ask(rows) if rows else {}
        self.asked |= dict.fromkeys(row.id for row in rows)
        self.stopped = any(answers[row.id] is None for row in rows)
        if self.stopped:
            raise _NothingToAskError
        return answers

    def _weights(self, answers: Sequence[Annotation], chances: Floats) -> list[float]:
        if not answers:
            return []
        self._said |= {answer.row_id: answer for answer in answers}
        self.gate.check(list(self._said.values()))  # of a small batch alone a single row would be most of it
        found: list[float] = self.gate.answered(answers, chances).tolist()
        return found

    def _affordable(self, wanted: Sequence[int], rows: Sequence[Row]) -> list[int]:
        """As many of the wanted rows as the cap still allows, in the batch's order; those asked before are free."""
        left, found = self.most_rows - len(self.asked), list[int]()
        for i in wanted:
            if rows[i].id in self.asked or left > 0:
                left -= rows[i].id not in self.asked
                found.append(i)
        return found

    def state(self) -> dict[str, Any]:
        """None: the pass keeps no checkpoint, since all that it leaves are answers, and they are kept."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""
