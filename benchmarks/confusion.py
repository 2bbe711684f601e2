"""Which label a system gave for which: the counts of a confusion matrix, without its empty cells. Draws nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgestill.benchmarks.recall import judged_systems
from edgestill.benchmarks.reference import Answers, Reference


@dataclass(frozen=True)
class Confused:
    """`n` rows whose right label is `truth` were called `said`; equal where they were right."""

    truth: str
    said: str
    n: int


def confusions(reference: Reference, artifacts: Sequence[Answers]) -> dict[str, tuple[Confused, ...]]:
    """By system, in the task's order of labels; empty where a row has a set of labels, its own choices or none."""
    if not reference.has_classes:
        return {}
    order = {label: i for i, label in enumerate(reference.labels)}
    found = {}
    for system in judged_systems(reference, artifacts):
        counts = Counter(zip(reference.truth, system.labels, strict=True))
        cells = sorted(counts.items(), key=lambda c: [(order.get(label, len(order)), label) for label in c[0]])
        found[system.name] = tuple(Confused(truth, said, n) for (truth, said), n in cells)
    return found
