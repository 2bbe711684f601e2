"""What strategies in rounds share: ask about a few random rows, train a student on the answers, rank the rest, go on.

This is pool-based active learning in batches (Settles, Active Learning Literature Survey, 2009, sections 2.3 and 6.1).
A strategy says only how it ranks; see `docs/select.md`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgestill.distill.chance import chance
from edgestill.distill.select.selection import Choice, Selection, Work

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgestill.distill.dataset import Row
    from edgestill.distill.recipe import Recipe
    from edgestill.distill.select.selection import Answers, Pair

Need = Literal["probabilities", "embeddings", "explanations"]
FIRST_SHARE = 10  # a tenth of the rows comes first, at random
FIRST_ROWS_A_LABEL = 2


@dataclass(frozen=True)
class Look:
    """What a strategy sees of the R rows that it may choose among, in reading order.

    Args:
        texts: R texts.
        luck: (R,) in [0, 1), from the seed and the row alone: between equals the lower one goes first.
        probabilities: (R, L) by the round's student: shares of 1, or of a set of labels each its own. Without rows
            unless the strategy needs them, as the next two.
        embeddings: (R, H) by the round's student.
        learnt: (N, H) of the N rows that the round's student was trained on.
        sets: whether a row has a set of labels.
    """

    texts: Sequence[str]
    luck: "NDArray[np.float64]"
    probabilities: "NDArray[np.float64]"
    embeddings: "NDArray[np.float64]"
    learnt: "NDArray[np.float64]"
    sets: bool = False


@dataclass(frozen=True)
class Round:
    """A round: its number from 1, how many rows to choose of which, answers so far, the last student's agreement."""

    number: int
    size: int
    rows: "Sequence[Row]"
    pairs: "Sequence[Pair]"
    before: float | None


class Rounds(Selection):
    """`rows` training rows are asked about in all, in `rounds` rounds, those that the teacher rejects included.

    The first round are `first_rows` random rows: unless given, a tenth of `rows`, at least two a label and at most half
    of `rows`. The other rounds share the rest evenly. Rows that random rounds take depend on `seed` and on nothing else
    of this section.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    rows: Annotated[int, Field(ge=1)]
    first_rows: Annotated[int, Field(ge=1)] | None = None
    rounds: Annotated[int, Field(ge=1)] = 4
    seed: int = 7

    @model_validator(mode="after")
    def _something_to_choose(self) -> "Rounds":
        first = self.first_rows or 1
        if first > self.rows:
            raise ValueError(f"first_rows is {first}, but rows is {self.rows}: of all rows together; write fewer")
        if self.needs and (self.rounds == 1 or first == self.rows):
            raise ValueError("the first round is random, and there is no other; write more rows and rounds")
        return self

    @property
    def is_active(self) -> bool:
        """See `Selection`; a ranking without a student's opinion is no choice."""
        return self.trains

    @property
    def trains(self) -> bool:
        """See `Selection`."""
        return bool(self.needs)

    def rank(self, look: Look, count: int) -> "NDArray[np.intp]":
        """Indices of the `count` rows to ask about next, none twice; the order of asking. `count` is at most R."""
        raise NotImplementedError

    def check(self, recipe: "Recipe") -> None:
        """See `Selection`: what is generated has no probabilities over labels."""
        if recipe.task.kind == "generate" and "probabilities" in self.needs:
            raise ValueError(
                f"select.strategy {self.strategy} ranks by label probabilities, which a task of kind generate has not; "
                "write strategy: random, k_centre or elad"
            )

    def likely(self, pool: "Sequence[Row]", labels: int) -> "Sequence[Row]":
        """See `Selection`: the random rows, among them those of the first round."""
        return self._by_luck(pool)[: sum(self.sizes(len(pool), labels))]

    def sizes(self, pool: int, labels: int) -> list[int]:
        """Rows to ask about in each round, of a pool and a task of so many rows and labels."""
        rows = min(self.rows, pool)
        if not self.needs or rows == pool:  # nothing to be learnt from one round for the next
            return [rows]
        fewest = max(FIRST_ROWS_A_LABEL * labels, self.rows // FIRST_SHARE)
        first = min(self.first_rows or max(1, min(fewest, self.rows // 2)), rows)
        rest, others = rows - first, self.rounds - 1
        later = [rest // others + (number < rest % others) for number in range(others)]
        return [first, *(size for size in later if size)]

    def acquire(self, work: Work) -> None:
        """See `Selection`. Ends early where nothing is chosen, and where the next run goes on: answers are missing.

        Raises:
            EdgestillError: as `chosen`.
        """
        pairs, rest, before = list(work.known), {row.id: row for row in work.pool}, None
        sizes = self.sizes(len(work.pool), len(work.task.labels))
        for number, size in enumerate(sizes, 1):
            work.tell(f"round {number} of {len(sizes)}")
            this = Round(number, size, list(rest.values()), list(pairs), before)
            choice = work.choose(lambda: self._choice(work, this))  # noqa: B023 - called at once
            rows, before = [rest.pop(name) for name in choice.ids], choice.facts.get("dev_agreement")
            answers = self.asked(work, rows, choice)
            if not rows or any(answers[row.id] is None for row in rows) or _mostly_failed(answers):
                return
            pairs += usable(rows, answers)

    def _choice(self, work: Work, this: "Round") -> Choice:
        """Random rows in the first round and while there is nothing to learn from, then what a student leads to."""
        if this.number == 1 or not this.pairs or not self.needs:
            return Choice(tuple(row.id for row in self._by_luck(this.rows)[: this.size]), {"trained_rows": 0})
        start = time.perf_counter()
        student = work.train(this.pairs)
        found = agreement(student, work.dev)
        gain = None if found is None or this.before is None else found - this.before
        choice = self.chosen(work, this, student, gain)
        facts = {"trained_rows": len(this.pairs), "dev_agreement": found, **choice.facts}
        return replace(choice, facts={**facts, "seconds": time.perf_counter() - start})

    def chosen(self, work: Work, this: "Round", student: Any, gain: float | None) -> Choice:
        """The rows to ask about by the round's student, the best first; none ends the rounds.

        Args:
            work: as in `acquire`.
            this: the round.
            student: trained on the answers so far.
            gain: what its agreement with the teacher has over the last student's; None where there was none.
        """
        del gain
        order = self.rank(self._look(student, this, work.task.is_multilabel), this.size)
        return Choice(tuple(this.rows[i].id for i in order))

    def asked(self, work: Work, rows: "Sequence[Row]", choice: Choice) -> "Answers":
        """The answers to the rows of a choice, by row id."""
        del choice
        return work.ask(rows)

    def _look(self, student: Any, this: "Round", sets: bool) -> Look:
        import numpy as np

        texts, none = [row.text for row in this.rows], np.zeros((0, 0))
        embeds = "embeddings" in self.needs
        return Look(
            texts,
            np.array([luck(self.seed, row) for row in this.rows]),
            student.probabilities(texts) if "probabilities" in self.needs else none,
            student.embeddings(texts) if embeds else none,
            student.embeddings([row.text for row, _ in this.pairs]) if embeds else none,
            sets,
        )

    def _by_luck(self, rows: "Sequence[Row]") -> "list[Row]":
        return sorted(rows, key=lambda row: luck(self.seed, row))


def luck(seed: int, row: "Row") -> float:
    """A number in [0, 1) that depends on the seed and the row alone: not on its place, nor on the strategy."""
    return chance(row.id, seed, "select")


def lowest(scores: "NDArray[np.float64]", luck: "NDArray[np.float64]", count: int) -> "NDArray[np.intp]":
    """Indices of the `count` lowest of R scores, lowest first; between equals the luckier."""
    import numpy as np

    return np.lexsort((luck, scores))[:count]


def usable(rows: "Sequence[Row]", answers: Mapping[str, Any]) -> "list[Pair]":
    """The rows with an answer that can be learnt from, with it."""
    from edgestill.distill.teacher.protocol import Annotation

    return [(row, answer) for row in rows if isinstance(answer := answers[row.id], Annotation)]


def _mostly_failed(answers: Mapping[str, Any]) -> bool:
    """Whether the endpoint failed at most of the rows: the next choice would know nothing new, and it is kept."""
    failed = sum(getattr(answer, "reason", None) == "endpoint_error" for answer in answers.values())
    return 2 * failed > len(answers)


def agreement(student: Any, dev: "Sequence[Pair]") -> float | None:
    """Share of the development rows with the teacher's answer; None without rows."""
    said = student.answers([row.text for row, _ in dev])
    return sum(mine == answer.label for mine, (_, answer) in zip(said, dev, strict=True)) / len(dev) if dev else None
