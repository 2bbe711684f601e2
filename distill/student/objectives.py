"""Losses and the targets that they want: pure functions. No model, no loop."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import binary_cross_entropy_with_logits

from edgestill.distill.student.packing import Packed
from edgestill.distill.white_box.divergences import HEAD_ROWS, Whole, forward_kl, head_divergences


def token_losses(hidden: Tensor, head: Tensor, packed: Packed) -> Tensor:
    """Cross-entropy in nats at each position that carries loss, (N,).

    A position with a soft target takes the cross-entropy with that distribution over the labels' answer tokens, which
    is that with the single token where all its share is on one (Hinton et al., arXiv 1503.02531, temperature in the
    target).

    Args:
        hidden: (N, H) hidden states that predict.
        head: (V, H), frozen; the logits are their product.
        packed: targets and soft targets.
    """
    hard = torch.ones(len(packed.targets), dtype=torch.bool)
    hard[packed.soft_at] = False
    rows = torch.cat([hard.nonzero()[:, 0], packed.soft_at])
    ids = torch.cat([packed.targets[hard], packed.soft_ids])
    shares = torch.cat([torch.ones(len(ids) - len(packed.soft_ids)), packed.soft_shares])
    losses: Tensor = _HeadLoss.apply(hidden, head, rows, ids, shares)
    return losses


class _HeadLoss(Function):
    """Head and cross-entropy with sparse distributions at once: log sum exp z - sum of share * z[id].

    The gradient is made along with the loss, some rows at a time: logits of all N rows over the vocabulary would be
    most of a pass's memory, and writing them most of the head's time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, rows: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
        losses, gradient = torch.empty(len(hidden)), torch.empty_like(hidden)
        for start in range(0, len(hidden), HEAD_ROWS):
            end = min(start + HEAD_ROWS, len(hidden))
            mine = (rows >= start) & (rows < end)
            row, token, share = rows[mine] - start, ids[mine], shares[mine]
            logits = (hidden[start:end] @ head.t()).float()
            logits -= logits.amax(-1, keepdim=True)
            picked = logits[row, token]
            total = logits.exp_().sum(-1)
            losses[start:end] = total.log().index_add_(0, row, share * picked, alpha=-1)
            if ctx.needs_input_grad[0]:
                logits.div_(total[:, None]).index_put_((row, token), -share, accumulate=True)
                gradient[start:end] = logits.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None, None


def divergences(hidden: Tensor, head: Tensor, wanted: Tensor, wanted_head: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence in nats of a student's next-token distribution from another model's, at each of N positions.

    sum p log(p / q), p the other model's: (N,). At a temperature T logits are divided by it and the divergence is
    multiplied by its square, so that gradients stay as large (Hinton et al., arXiv 1503.02531).

    Args:
        hidden: (N, H) the student's.
        head: (V, H) the student's, frozen.
        wanted: (N, H) the other model's, without gradients.
        wanted_head: (V, H).
    """
    return head_divergences(hidden, head, Whole(wanted, wanted_head, temperature), forward_kl, temperature)


def label_rationale_loss(
    losses: Tensor, packed: Packed, rationale_weight: float, mass: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """(1 - w) * mean CE over label tokens + w * mean CE over rationale tokens, in nats.

    The multi-task loss of distilling step-by-step as used with zero-shot teachers (arXiv 2403.15886; 2305.02301):
    each task is a mean over its own tokens, so a long reason does not drown a short label. The label's mean is
    weighted by `packed.weights`. A batch without reasons gives the label loss alone.

    Args:
        losses: (N,) of `token_losses`.
        packed: tasks and weights.
        rationale_weight: w in [0, 1).
        mass: what the whole batch holds, when `packed` is a part of it: weight of all label tokens, number of all
            rationale tokens. The losses of the parts then add up to that of the batch.

    Returns:
        (loss, parts): the scalar to minimise and a detached (2,) tensor of label and rationale loss; the latter is
        nan when the batch has no reasons.
    """
    is_label = packed.tasks == 0
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


def set_losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy in nats of each row's labels, the mean over the L of them: (R, L), (R, L) -> (R,).

    Each label is asked about on its own: sigmoid, and log loss with the wanted share (Nam et al., arXiv 1312.5419).
    """
    return binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)


def set_target(held: Collection[str], labels: Sequence[str], smoothing: float) -> tuple[float, ...]:
    """What a row with the labels `held` teaches of each of all L `labels`: 1 or 0, drawn towards 1/2 by smoothing.

    Args:
        held: perhaps none.
        labels: all of them, in the order of the outputs.
        smoothing: e; t becomes (1 - e) * t + e / 2 (Szegedy et al., arXiv 1512.00567, with two classes).
    """
    return tuple((1 - smoothing) * (label in held) + smoothing / 2 for label in labels)


def class_weights(labels: Sequence[str], how: str, masses: Sequence[float]) -> dict[str, float]:
    """Weight of each label that occurs, mean 1 over the mass of the rows.

    "equal": 1. "balanced": M / (C * m_c), so that every one of C classes weighs the same. "sqrt": proportional to the
    square root of that, a half-way that does not blow up rare classes.

    Args:
        labels: of the N rows.
        how: see above.
        masses: (N,) what each row weighs in the loss by itself: 1, or the number of its label's tokens.
    """
    held: dict[str, float] = defaultdict(float)
    for label, mass in zip(labels, masses, strict=True):
        held[label] += mass
    power = {"equal": 0.0, "sqrt": 0.5, "balanced": 1.0}[how]
    raw = {label: mass**-power for label, mass in held.items()}
    mean = sum(raw[label] * mass for label, mass in held.items()) / sum(masses)
    return {label: weight / mean for label, weight in raw.items()}
