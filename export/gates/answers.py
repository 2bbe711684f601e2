"""Gate: what ships, with its integer kernels, answers the development rows as torch does on the same numbers.

Reported too: how far the probabilities move. Kernels that round activations to 8 bits cost about 6e-3 nats of KL over
the vocabulary in both engines; the wide bounds on it catch a wrong weight and judge no kernel.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from typing import Any

import numpy as np

from edgestill.export.gates.gate import Gate, at_most
from edgestill.export.gates.reference import Reference, answer, kl_nats
from edgestill.runtime.decode import Probabilities, constant_prefix
from edgestill.runtime.metrics import Estimate, paired_test
from edgestill.runtime.session import Session
from edgestill.runtime.task import Task

ANSWER_ROWS = 200
MAX_MEAN_KL_NATS = 0.1
# Where torch's own margin between the two best is above this, a flip is a wrong weight.
MAX_MARGIN_FLIPPED = 0.25
MAX_SHARE_FLIPPED = 0.03
CHANCE_OF_ONE_SIDE = 0.05
# Of the teacher's labels, in shares of 1: more than this must not be lost to the kernels.
ACCURACY_MARGIN = 0.02


@dataclass(frozen=True)
class Answers:
    """One engine's answers on the rows of the reference, measured.

    `labels_kept` is a share of 1; `margin` is how sure torch was of the answer that changed and was surest;
    `accuracy_lost` is torch's accuracy minus the engine's, both against the teacher, with its paired 95 % interval;
    None where the run does not keep the teacher's labels. `probabilities` (N, L) are the engine's own.
    """

    rows: int
    labels_kept: float
    mean_kl_nats: float
    max_probability_difference: float
    max_margin_flipped: float
    accuracy_lost: Estimate | None
    probabilities: Probabilities = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)

    def facts(self) -> dict[str, Any]:
        """What the bundle's manifest holds: all but the probabilities."""
        return {name: value for name, value in asdict(self).items() if name != "probabilities"}


def measure(session: Session, rows: Sequence[Reference], task: Task, tokenizer: Any) -> Answers:
    """One engine on the rows, each afresh as `Student.predict` does it; `tokenizer` is the bundle's own."""
    kls, worst, margin, said, given = [], 0.0, 0.0, [], []
    session.pin(constant_prefix(task, tokenizer))
    for row in rows:
        session.forget()
        logits = session.logits(task.encode(tokenizer, row.text))
        chances, label = answer(logits, task, row.text)
        kls.append(kl_nats(row.logits, logits, task))
        worst = max(worst, float(np.abs(chances - row.probabilities).max()))
        if label != row.label:
            margin = max(margin, _margin_flipped(row.probabilities, chances, task))
        said.append(label)
        given.append(chances)
    kept = sum(label == row.label for label, row in zip(said, rows, strict=True))
    lost = accuracy_lost(said, rows)
    return Answers(len(rows), kept / len(rows), sum(kls) / len(rows), worst, margin, lost, np.array(given))


def accuracy_lost(said: Sequence[str], rows: Sequence[Reference]) -> Estimate | None:
    """Torch's accuracy minus that of the engine that `said` so, against the teacher; None without the teacher's."""
    right = [(row.label == row.teacher, x == row.teacher) for x, row in zip(said, rows, strict=True) if row.teacher]
    return paired_test([by_torch for by_torch, _ in right], [here for _, here in right]).difference if right else None


def answer_gates(engine: str, found: Answers, what: str = "labels") -> list[Gate]:
    """Answers kept, KL, the surest answer changed; the teacher's answers lost where they are known.

    `what` an answer is, in the plural, for the gate's name.
    A flip counts against the build only beyond what `MAX_SHARE_FLIPPED` explains on that many rows, see
    `flips_allowed`. The accuracy fails only when its paired interval lies wholly beyond `ACCURACY_MARGIN`.
    """
    flips = round((1 - found.labels_kept) * found.rows)
    gates = [
        at_most(f"{engine}: {what} other than torch's", flips, flips_allowed(found.rows), f"of {found.rows}"),
        at_most(f"{engine}: mean KL at the answer", found.mean_kl_nats, MAX_MEAN_KL_NATS, "nats"),
        at_most(
            f"{engine}: torch's margin in a changed answer", found.max_margin_flipped, MAX_MARGIN_FLIPPED, "probability"
        ),
    ]
    if found.accuracy_lost is not None:
        name = f"{engine}: accuracy lost against torch, lower end of 95 %"
        gates.append(at_most(name, found.accuracy_lost.low, ACCURACY_MARGIN, "of the rows"))
    return gates


def flips_allowed(rows: int) -> int:
    """Most flips of n rows that a true share of 3 % explains: the exact one-sided 95 % bound is not above it.

    Exact binomial (Clopper and Pearson 1934): k flips are too many where k or more of n have a chance below 5 %.
    """
    p, tail, flips = MAX_SHARE_FLIPPED, 1.0, 0
    while flips <= rows and tail >= CHANCE_OF_ONE_SIDE:
        tail -= comb(rows, flips) * p**flips * (1 - p) ** (rows - flips)
        flips += 1
    return flips - 1


def _margin_flipped(p: Probabilities, q: Probabilities, task: Task) -> float:
    """How sure torch was of what the engine changed: its best label over the engine's, or a label over its absence."""
    if not task.is_multilabel:
        return float(p.max() - p[q.argmax()])
    changed = (p >= task.threshold) != (q >= task.threshold)
    return float(2 * np.abs(p - task.threshold)[changed].max())
