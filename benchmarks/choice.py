"""Which system to take to the device: the cheapest that is not shown to be worse than the best. Draws nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from edgestill.benchmarks.reference import Answers, Reference
from edgestill.benchmarks.verdict import LOSES, compare
from edgestill.runtime import metrics
from edgestill.runtime.metrics import Estimate

RULE = (
    "Cheapest is the lowest p50 latency, between equal ones the fewest bytes on disk. Candidates are the floor and the "
    "artifacts, which run on the device without torch; the best is the one with the most rows right, and a candidate "
    "is shown to be worse when p < 0.05 and the interval is below 0."
)


@dataclass(frozen=True)
class Choice:
    """The cheapest candidate that is not shown to be worse than the best on the same rows.

    `candidates` are named from the cheapest to the dearest, `shown_worse` are those among them that lost against the
    best. `difference` is the share of the chosen minus that of the best with its paired-bootstrap 95 % interval, None
    when the best itself was chosen; `may_lose` is the share that the chosen may yet be worse by: the lower end of that
    interval, but no less than what so few rows can hide.
    """

    chosen: str
    best: str
    candidates: tuple[str, ...]
    shown_worse: tuple[str, ...]
    difference: Estimate | None
    may_lose: float | None
    rule: str = RULE


def candidates_of(reference: Reference, artifacts: Sequence[Answers]) -> list[Answers]:
    """The floor and the artifacts from the cheapest to the dearest; an unknown latency is dearer than any."""
    return sorted((*(s for s in reference.systems if s.kind == "floor"), *artifacts), key=_cost)


def _cost(answers: Answers) -> tuple[float, float]:
    p50 = metrics.quantile(answers.latencies_ms, 0.5, metrics.MIN_SAMPLES_P50)
    return inf if p50 is None else p50, inf if answers.bytes is None else answers.bytes


def best_of(candidates: Sequence[Answers], truth: Sequence[str]) -> Answers:
    """The first of those with the most rows right, of one candidate or more."""
    return max(candidates, key=lambda c: sum(a == b for a, b in zip(c.labels, truth, strict=True)))


def choose(candidates: Sequence[Answers], truth: Sequence[str]) -> Choice | None:
    """The choice among candidates from the cheapest to the dearest; None with fewer than two, where there is none."""
    if len(candidates) < 2:
        return None
    best = best_of(candidates, truth)
    tests = {c.name: compare(c, best, truth) for c in candidates if c is not best}
    shown_worse = tuple(name for name, test in tests.items() if test.outcome == LOSES)
    chosen = next(c.name for c in candidates if c.name not in shown_worse)
    difference = tests[chosen].difference if chosen in tests else None
    return Choice(
        chosen=chosen,
        best=best.name,
        candidates=tuple(c.name for c in candidates),
        shown_worse=shown_worse,
        difference=difference,
        may_lose=None if difference is None else max(-difference.low, metrics.unseen_share(len(truth))),
    )
