"""Losses and the targets that they want: pure functions. No model, no loop."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import cross_entropy

from edgestill.distill.packing import Packed


def token_losses(logits: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Cross-entropy in nats at each position that carries loss, (N,).

    A position with a soft target takes the cross-entropy with that distribution over the labels' answer tokens, which
    is that with the single token where all its share is on one (Hinton et al., arXiv 1503.02531, temperature in the
    target).
    """
    losses = cross_entropy(logits.float(), packed.targets, reduction="none")
    if len(packed.soft_at) == 0:
        return losses
    rows = packed.soft_at.unique()
    log_p = logits[rows].float().log_softmax(-1)
    within = torch.searchsorted(rows, packed.soft_at)
    parts = -packed.soft_shares * log_p[within, packed.soft_ids]
    return losses.index_put((rows,), torch.zeros(len(rows)).index_add(0, within, parts))


def label_rationale_loss(
    logits: torch.Tensor, packed: Packed, rationale_weight: float, mass: tuple[float, float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 - w) * mean CE over label tokens + w * mean CE over rationale tokens, in nats.

    The multi-task loss of distilling step-by-step as used with zero-shot teachers (arXiv 2403.15886; 2305.02301):
    each task is a mean over its own tokens, so a long reason does not drown a short label. The label's mean is
    weighted by `packed.weights`. A batch without reasons gives the label loss alone.

    Args:
        logits: (N, V), one row for each position that carries loss, in the order of `packed.targets`.
        packed: targets, tasks, weights and soft targets.
        rationale_weight: w in [0, 1).
        mass: what the whole batch holds, when `packed` is a part of it: weight of all label tokens, number of all
            rationale tokens. The losses of the parts then add up to that of the batch.

    Returns:
        (loss, parts): the scalar to minimise and a detached (2,) tensor of label and rationale loss; the latter is
        nan when the batch has no reasons.
    """
    losses, is_label = token_losses(logits, packed), packed.tasks == 0
    label_mass, rationale_mass = mass or (float(packed.weights[is_label].sum()), float((~is_label).sum()))
    label = (losses[is_label] * packed.weights[is_label]).sum() / label_mass
    if rationale_mass == 0:
        return label, torch.stack([label.detach(), torch.tensor(torch.nan)])
    reasons = losses[~is_label].sum() / rationale_mass
    loss = (1 - rationale_weight) * label + rationale_weight * reasons
    return loss, torch.stack([label, reasons]).detach()


def soft_target(
    label: str, probabilities: Mapping[str, float] | None, labels: Sequence[str], temperature: float, smoothing: float
) -> dict[str, float] | None:
    """The distribution over the labels that a row teaches; None where it is the label alone.

    Args:
        label: the teacher's label.
        probabilities: the teacher's, over `labels`; None stands for all on the label.
        labels: all of them, L.
        temperature: T; a share p becomes proportional to p ** (1 / T) (arXiv 1503.02531).
        smoothing: e; (1 - e) of the distribution and e / L on each label (Szegedy et al., arXiv 1512.00567).
    """
    if probabilities is None and smoothing == 0:
        return None
    powers = {name: (probabilities or {label: 1.0}).get(name, 0.0) ** (1 / temperature) for name in labels}
    total = sum(powers.values())
    return {name: (1 - smoothing) * power / total + smoothing / len(labels) for name, power in powers.items()}


def class_weights(labels: Sequence[str], how: str) -> dict[str, float]:
    """Weight of each label that occurs, mean 1 over the rows.

    "equal": 1. "balanced": N / (C * n_c), so that every class weighs the same. "sqrt": proportional to the square root
    of that, a half-way that does not blow up rare classes.
    """
    counts = Counter(labels)
    power = {"equal": 0.0, "sqrt": 0.5, "balanced": 1.0}[how]
    raw = {label: count**-power for label, count in counts.items()}
    mean = sum(raw[label] for label in labels) / len(labels)
    return {label: weight / mean for label, weight in raw.items()}
