"""Which rows an artifact answers otherwise than the weights it was made from, or than itself on another machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from edgestill.benchmarks.measurement import Measurement
from edgestill.benchmarks.reference import Answers, Reference

SHOWN_LETTERS = 120


@dataclass(frozen=True)
class Flip:
    """A test row with two answers: `before` of what is compared with, `after` of the artifact. The text is cut."""

    row_id: str
    text: str
    gold: str | None
    teacher: str
    before: str
    after: str


@dataclass(frozen=True)
class Apart:
    """One artifact on two machines: the rows that it answers otherwise on `b` than on `a`, both names of systems.

    `max_probability_difference` is over all labels of all rows, None where a machine told no probabilities.
    """

    a: str
    b: str
    rows: int
    flips: tuple[Flip, ...]
    max_probability_difference: float | None


def flips_between(before: Answers, after: Answers, reference: Reference) -> tuple[Flip, ...]:
    """The rows on which two systems part, in their order."""
    return tuple(
        Flip(
            row_id=row_id,
            text=shortened(reference.texts[i]),
            gold=None if reference.gold is None else reference.gold[i],
            teacher=reference.teacher.labels[i],
            before=before.labels[i],
            after=after.labels[i],
        )
        for i, row_id in enumerate(reference.row_ids)
        if before.labels[i] != after.labels[i]
    )


def torch_of(reference: Reference, student: str | None) -> Answers | None:
    """The trained weights of a student as torch ran them; None where the bundle has no such answers."""
    return next((s for s in reference.systems if s.kind == "student" and s.student == student), None)


def apart(reference: Reference, measurements: Sequence[Measurement], artifacts: Sequence[Answers]) -> Iterator[Apart]:
    """Every pair of machines that ran the same artifact; measurements and artifacts are in the same order."""
    for (m, a), (n, b) in combinations(zip(measurements, artifacts, strict=True), 2):
        if (m.student, m.engine, m.path) == (n.student, n.engine, n.path) and m.machine.name != n.machine.name:
            found = flips_between(a, b, reference)
            yield Apart(a.name, b.name, len(reference.row_ids), found, _largest_difference(m, n))


def _largest_difference(m: Measurement, n: Measurement) -> float | None:
    one, other = ({r.row_id: r.probabilities for r in each.requests if r.probabilities} for each in (m, n))
    return max(
        (abs(p - other[row][label]) for row in one.keys() & other.keys() for label, p in one[row].items()), default=None
    )


def shortened(text: str) -> str:
    """A text on one line, its end cut off when it is long."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_LETTERS else f"{line[: SHOWN_LETTERS - 1]}…"
