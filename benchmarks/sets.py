"""How the sets of labels that each system gave fit the right ones, label by label. Draws nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgestill.benchmarks.recall import judged_systems
from edgestill.benchmarks.reference import Answers, Reference
from edgestill.runtime import label_sets, set_metrics
from edgestill.runtime.metrics import Estimate
from edgestill.runtime.set_metrics import Held, LabelScore


@dataclass(frozen=True)
class LabelLine:
    """The label `label`, which `n` rows hold, and how each system did with it."""

    label: str
    n: int
    scores: dict[str, LabelScore]


@dataclass(frozen=True)
class SetScores:
    """A line a label in the task's order, of floor, artifacts, and the teacher where gold judges.

    `left_out` counts by system the labels that its macro-F1 leaves out, because no row holds them and none was said to.
    """

    labels: tuple[LabelLine, ...]
    left_out: dict[str, int]


def scores_by_label(reference: Reference, artifacts: Sequence[Answers]) -> SetScores | None:
    """What sets are judged by beside their equality; None where a row has one label."""
    if not reference.is_multilabel:
        return None
    truth, systems = _held(reference.truth, reference), judged_systems(reference, artifacts)
    said = {answers.name: _held(answers.labels, reference) for answers in systems}
    shown = [answers.name for answers in systems if answers.kind in ("teacher", "floor", "artifact")]
    scores = {name: set_metrics.label_scores(truth, said[name]) for name in shown}
    lines = (
        LabelLine(label, int(truth[:, i].sum()), {name: scores[name][i] for name in shown})
        for i, label in enumerate(reference.labels)
    )
    return SetScores(tuple(lines), {name: set_metrics.labels_left_out(truth, each) for name, each in said.items()})


def f1_over_labels(answers: Answers, reference: Reference) -> tuple[Estimate | None, Estimate | None]:
    """(micro-F1, macro-F1) of a system's sets."""
    truth, said = _held(reference.truth, reference), _held(answers.labels, reference)
    return set_metrics.micro_f1(truth, said), set_metrics.macro_f1(truth, said)


def _held(answers: Sequence[str], reference: Reference) -> Held:
    return set_metrics.held([label_sets.split(answer) for answer in answers], reference.labels)
