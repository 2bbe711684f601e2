"""The gate of strategies that choose at every step: signals of teacher and student, moving thresholds, weights.

FreeMatch's moving averages (arXiv 2205.07246, equations 5 to 7), which LLKD (arXiv 2411.08028) has for two signals: its
words are sure, its algebra is our reading.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgestill.distill.select.gated import GatedSelection
from edgestill.runtime.errors import EdgestillError

if TYPE_CHECKING:
    from edgestill.distill.teacher.protocol import Annotation

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
Mask = NDArray[np.bool_]

MOST_WITHOUT = 0.5
# A row's signal is compared with averages of signals: where all are equal, rounding must not keep all of them out.
TOLERANCE = 1e-9
SMALLEST_WEIGHT = 1e-9
GIVE_PROBABILITIES = (
    "wanted label probabilities: an endpoint with teacher.logprobs or teacher.votes, teacher.kind gguf or huggingface, "
    "or recorded answers with probabilities"
)


class MovingThreshold:
    """A threshold over a signal in 0..1 that follows its mean, and lower ones for the classes where it is weaker.

    tau is the moving average of the batches' means, rho(y) that of something of each class (see `update`), and the
    threshold of a class is tau(y) = rho(y) / max rho * tau, so never above tau.
    """

    def __init__(self, classes: int, decay: float, patience_steps: int, start: float | None) -> None:
        """`start` is the first tau and rho; None stands for what the first batch has."""
        self.decay, self.patience_steps = decay, patience_steps
        self.overall = start
        self.by_class: Floats | None = None if start is None else np.full(classes, start)
        self.refused_steps = np.zeros(classes, dtype=np.int64)

    def update(self, mean: float, by_class: Floats) -> None:
        """Follow a batch: the mean of its signals, and of each class its part (C,), nan where the batch has none."""
        if self.overall is None or self.by_class is None:
            self.overall, self.by_class = mean, np.where(np.isnan(by_class), mean, by_class)
        self.overall = self.decay * self.overall + (1 - self.decay) * mean
        seen = ~np.isnan(by_class)
        self.by_class[seen] = self.decay * self.by_class[seen] + (1 - self.decay) * by_class[seen]

    def by_classes(self) -> Floats:
        """(C,) thresholds now; ones before the first batch."""
        if self.overall is None or self.by_class is None:
            return np.ones(len(self.refused_steps))
        largest = self.by_class.max()
        shares = self.by_class / largest if largest > 0 else np.ones_like(self.by_class)
        relief = self.decay ** np.maximum(0, self.refused_steps - self.patience_steps)
        return shares * self.overall * relief

    def passed(self, signals: Floats, classes: Places) -> Mask:
        """(B,) whether each signal reaches its class's threshold."""
        return signals >= self.by_classes()[classes] - TOLERANCE

    def note(self, classes: Places, selected: Mask) -> None:
        """Count the steps for which a class was refused, after a batch with rows of `classes`."""
        self.refused_steps[classes] += 1
        self.refused_steps[classes[selected]] = 0

    def state(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        by_class = None if self.by_class is None else self.by_class.tolist()
        return {"overall": self.overall, "by_class": by_class, "refused_steps": self.refused_steps.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.overall, by_class = state["overall"], state["by_class"]
        self.by_class = None if by_class is None else np.array(by_class)
        self.refused_steps = np.array(state["refused_steps"], dtype=np.int64)

    def facts(self, labels: Sequence[str]) -> dict[str, Any]:
        """Of the whole, and of each class."""
        by_label = dict(zip(labels, self.by_classes().tolist(), strict=True))
        return {"overall": self.overall, "by_label": by_label}


class Signal(Protocol):
    """What a gate asks of each row, and the threshold that it must reach."""

    threshold: MovingThreshold

    def check(self, answers: "Sequence[Annotation]") -> None:
        """See `gate.Gate`."""

    def measure(self, answers: "Sequence[Annotation]", classes: Places, chances: Floats) -> tuple[Floats, Mask]:
        """Follow a batch; ((B,) in 0..1, nan where unknown; (B,) whether it reaches its class's threshold)."""


class TeacherConfidence:
    """c, the teacher's probability of its label. tauT follows its mean, rhoT(y) that of p(y); both start at 1/C.

    With `class_rule` confidence rhoT(y) follows the mean c of the rows of y instead. A label by hand has c = 1.
    """

    def __init__(self, labels: Sequence[str], keys: GatedSelection, class_rule: str = "share") -> None:
        """`labels` are the task's, C of them."""
        self.labels, self.strategy, self.class_rule = labels, keys.strategy, class_rule
        self.threshold = MovingThreshold(len(labels), keys.decay, keys.patience_steps, start=1 / len(labels))

    def check(self, answers: "Sequence[Annotation]") -> None:
        """Refuse answers most of which tell no probabilities: those rows would not be learnt from.

        Raises:
            EdgestillError: more than half of them.
        """
        without = sum(answer.probabilities is None and not answer.corrected for answer in answers)
        if without > MOST_WITHOUT * len(answers):
            raise EdgestillError(
                f"select.strategy {self.strategy} gates by the teacher's probabilities, but {without} of "
                f"{len(answers)} answers have none",
                GIVE_PROBABILITIES,
            )

    def measure(self, answers: "Sequence[Annotation]", classes: Places, chances: Floats) -> tuple[Floats, Mask]:
        """See `Signal`; the student's probabilities do not matter."""
        del chances
        shares = teacher_shares(answers, self.labels)
        found: Floats = shares[np.arange(len(answers)), classes]
        known = ~np.isnan(found)
        if known.any():
            own = class_means(found[known], classes[known], len(self.labels))
            by_class = shares[known].mean(0) if self.class_rule == "share" else own
            self.threshold.update(float(found[known].mean()), by_class)
        return found, known & self.threshold.passed(found, classes)


class StudentUncertainty:
    """u, the student's entropy over log C. tauS follows its mean, rhoS(y) that of the rows of y.

    Both start at what the first batch has: at 1 nothing would be selected for long.
    """

    def __init__(self, labels: Sequence[str], keys: GatedSelection) -> None:
        """`labels` are the task's, C of them."""
        self.threshold = MovingThreshold(len(labels), keys.decay, keys.patience_steps, start=None)

    def check(self, answers: "Sequence[Annotation]") -> None:
        """Labels are enough."""

    def measure(self, answers: "Sequence[Annotation]", classes: Places, chances: Floats) -> tuple[Floats, Mask]:
        """See `Signal`; of the answers only their classes matter."""
        del answers
        found = uncertainties(chances)
        self.threshold.update(float(found.mean()), class_means(found, classes, chances.shape[1]))
        return found, self.threshold.passed(found, classes)


class MovingGate:
    """Rows that reach the thresholds of all signals, weighted by their product: see `gate.Gate`."""

    def __init__(self, labels: Sequence[str], weighted: bool, signals: Mapping[str, Signal]) -> None:
        """`labels` are the task's, L of them; `signals` by the name that the facts give them."""
        self.labels, self.weighted, self.signals = list(labels), weighted, signals

    def check(self, answers: "Sequence[Annotation]") -> None:
        """See `gate.Gate`."""
        for signal in self.signals.values():
            signal.check(answers)

    def weights(self, answers: "Sequence[Annotation]", chances: Floats) -> Floats:
        """See `gate.Gate`. The averages follow the batch before it is gated; what is unknown is not selected."""
        classes = places_of(answers, self.labels)
        measured = [signal.measure(answers, classes, chances) for signal in self.signals.values()]
        selected = np.logical_and.reduce([passed for _, passed in measured])
        for signal in self.signals.values():
            signal.threshold.note(classes, selected)
        return self.weigh(selected, [values for values, _ in measured])

    def weigh(self, selected: Mask, signals: Sequence[Floats]) -> Floats:
        """(B,) `selected_weights` by the product of the signals, or alike."""
        importance = np.multiply.reduce(signals) if self.weighted else np.ones(len(selected))
        return selected_weights(selected, np.nan_to_num(importance))

    def state(self) -> dict[str, Any]:
        """See `gate.Gate`."""
        return {name: signal.threshold.state() for name, signal in self.signals.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """See `gate.Gate`."""
        for name, signal in self.signals.items():
            signal.threshold.restore(state[name])

    def facts(self) -> dict[str, Any]:
        """See `gate.Gate`: the thresholds at the end."""
        return {"thresholds": {name: signal.threshold.facts(self.labels) for name, signal in self.signals.items()}}


class TwoSignalGate(MovingGate):
    """Selected: c >= tauT(y) and u >= tauS(y), of weight c * u; see the two signals."""

    def __init__(self, labels: Sequence[str], keys: GatedSelection, class_rule: str) -> None:
        """`class_rule` is of the teacher's signal."""
        self.teacher = TeacherConfidence(labels, keys, class_rule)
        self.student = StudentUncertainty(labels, keys)
        super().__init__(labels, keys.weighted, {"teacher": self.teacher, "student": self.student})

    def wanted(self, chances: Floats) -> Mask:
        """(B,) of rows that nobody has answered, those worth asking about: gated by the student's own labels."""
        classes = chances.argmax(-1)
        _, found = self.student.measure((), classes, chances)
        self.student.threshold.note(classes, found)
        return found

    def answered(self, answers: "Sequence[Annotation]", chances: Floats) -> Floats:
        """(B,) weights of rows that were `wanted`, now that the teacher has answered: only its threshold is left."""
        classes = places_of(answers, self.labels)
        sure, selected = self.teacher.measure(answers, classes, chances)
        self.teacher.threshold.note(classes, selected)
        return self.weigh(selected, [sure, uncertainties(chances)])


def places_of(answers: "Sequence[Annotation]", labels: Sequence[str]) -> Places:
    """(B,) place of each answer's label among L."""
    place = {label: number for number, label in enumerate(labels)}
    return np.array([place[answer.label] for answer in answers], dtype=np.intp)


def teacher_shares(answers: "Sequence[Annotation]", labels: Sequence[str]) -> Floats:
    """(B, L) the teacher's probabilities; a label by hand has all of its own row; nan where it gave none."""
    found = np.full((len(answers), len(labels)), np.nan)
    for row, answer in enumerate(answers):
        chances = {answer.label: 1.0} if answer.corrected else answer.probabilities
        if chances is not None:
            found[row] = [chances.get(label, 0.0) for label in labels]
    return found


def uncertainties(chances: Floats) -> Floats:
    """(B,) u, the entropy of the student's probabilities (B, L) over log L, in 0..1."""
    logs = np.log(np.where(chances > 0, chances, 1.0))
    found: Floats = np.clip(-(chances * logs).sum(-1) / math.log(chances.shape[1]), 0.0, 1.0)
    return found


def class_means(signals: Floats, classes: Places, count: int) -> Floats:
    """(count,) mean signal of each class, nan where the batch has no row of it."""
    rows = np.bincount(classes, minlength=count)
    sums = np.bincount(classes, signals, minlength=count)
    return np.divide(sums, rows, out=np.full(count, np.nan), where=rows > 0)


def selected_weights(selected: Mask, importance: Floats) -> Floats:
    """(B,) 0 where not selected, else proportional to the importance and of mean 1; an importance of 0 counts a little.

    Loss and gradient are then divided by the sum of the weights, which is the number of selected rows.
    """
    raw = np.where(selected, np.maximum(importance, SMALLEST_WEIGHT), 0.0)
    return raw * (selected.sum() / raw.sum()) if selected.any() else raw
