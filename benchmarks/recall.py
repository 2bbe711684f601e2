"""What each system finds of a label, and how it treats the label that means none of these. Draws nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgestill.benchmarks.reference import Answers, Reference
from edgestill.runtime import metrics
from edgestill.runtime.metrics import Estimate


@dataclass(frozen=True)
class LabelRecall:
    """The rows whose right label is `label`: how many (`n`), and which share each system found; None for n = 0."""

    label: str
    n: int
    recall: dict[str, Estimate | None]


@dataclass(frozen=True)
class NoneOfThese:
    """The label that means none of these.

    Of the `n` rows that are none of these `recall` is the share that a system called so; of the `n_other` rows that
    have another label `false_alarms` is the share that it called none of these all the same. Both by system, with
    Wilson's intervals, None without such rows.
    """

    label: str
    n: int
    n_other: int
    recall: dict[str, Estimate | None]
    false_alarms: dict[str, Estimate | None]


def recall_by_label(reference: Reference, artifacts: Sequence[Answers]) -> Iterator[LabelRecall]:
    """One line a label, the task's first: recall of floor and artifacts, and of the teacher where gold judges.

    None where a row has a set of labels, its own choices or none.
    """
    if not reference.has_classes:
        return
    judged = [s for s in judged_systems(reference, artifacts) if s.kind in ("teacher", "floor", "artifact")]
    for label in dict.fromkeys((*reference.labels, *sorted(set(reference.truth)))):
        where = [i for i, wanted in enumerate(reference.truth) if wanted == label]
        yield LabelRecall(label, len(where), {s.name: _share_called(s, label, where) for s in judged})


def none_of_these(reference: Reference, artifacts: Sequence[Answers]) -> NoneOfThese | None:
    """How every system treats the task's label for none of these; None for a task without one."""
    label = reference.none
    if label is None:
        return None
    where = [i for i, wanted in enumerate(reference.truth) if wanted == label]
    elsewhere = [i for i, wanted in enumerate(reference.truth) if wanted != label]
    judged = judged_systems(reference, artifacts)
    return NoneOfThese(
        label=label,
        n=len(where),
        n_other=len(elsewhere),
        recall={s.name: _share_called(s, label, where) for s in judged},
        false_alarms={s.name: _share_called(s, label, elsewhere) for s in judged},
    )


def judged_systems(reference: Reference, artifacts: Sequence[Answers]) -> list[Answers]:
    """All systems; without gold the teacher judges and is not judged."""
    teacher = [] if reference.gold is None else [reference.teacher]
    return [*teacher, *reference.systems, *artifacts]


def _share_called(answers: Answers, label: str, rows: Sequence[int]) -> Estimate | None:
    return metrics.wilson(sum(answers.labels[i] == label for i in rows), len(rows))
