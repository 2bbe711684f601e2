"""One answer: what `Student.predict` gives back, made of the labels' probabilities. Runs no model."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgestill.runtime.confidence import confidence
from edgestill.runtime.decode import Probabilities
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import Task


@dataclass(frozen=True)
class Prediction:
    """One answer.

    `label` is the answer as one text: a label, or of a multilabel task the set as `label_sets` writes it, such as
    "lights | music" or "(none)"; `labels` are its names. `probabilities` are by label: of one answer they sum to 1 over
    the labels asked about, of a set each is that label's own, whatever the others are. `latency_ms` is wall time from
    text in to answer out, tokenization included; in `predict_many` that of the rows read together, over their number.

    `confidence` is the calibrated probability that the answer is the teacher's, who judged the rows that it was fitted
    to; of a set that of its least certain label (see `confidence.confidence`). Where the bundle ships no calibration,
    and for other labels than the task's, it is the plain probability. `abstained` says that it is below what the caller
    wanted; the answer is given all the same.
    """

    label: str
    labels: tuple[str, ...]
    probabilities: dict[str, float]
    latency_ms: float
    prompt_tokens: int
    confidence: float
    abstained: bool = False


def of_task(chances: Probabilities, task: Task, temperature: float) -> Prediction:
    """The answer that the (L,) probabilities of the task's labels give; the caller adds latency and prompt tokens."""
    chosen = task.chosen(chances.tolist())
    sure = confidence(chances, [task.label_names.index(name) for name in chosen], task.is_multilabel, temperature)
    return Prediction(task.written(chosen), chosen, _by_label(task.label_names, chances), 0.0, 0, sure)


def of_labels(chances: Probabilities, names: Sequence[str]) -> Prediction:
    """The likeliest of the caller's own labels, for which no temperature was fitted."""
    best = int(chances.argmax())
    return Prediction(names[best], (names[best],), _by_label(names, chances), 0.0, 0, float(chances[best]))


def _by_label(names: Sequence[str], chances: Probabilities) -> dict[str, float]:
    return dict(zip(names, chances.tolist(), strict=True))


def checked_threshold(abstain_below: float | None) -> float:
    """The confidence wanted; 0, which every answer reaches, for None.

    Raises:
        UsageError: no probability.
    """
    if abstain_below is None:
        return 0.0
    if not 0 <= abstain_below <= 1:
        raise UsageError(f"abstain_below is {abstain_below}, wanted a probability from 0 to 1", "such as 0.8")
    return abstain_below


def checked_labels(labels: Sequence[str]) -> Sequence[str]:
    """The caller's own labels.

    Raises:
        UsageError: one text, whose letters would be the labels.
        EdgestillError: none, an empty one, or one twice.
    """
    if isinstance(labels, str):
        raise UsageError(f"labels is the text {labels!r}, wanted a list", f"type: labels=[{labels!r}]")
    if not labels or len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
        raise EdgestillError(f"labels {list(labels)!r}: wanted at least one, all different, none empty")
    return labels
