"""Losses: pure functions of tensors. No model, no loop."""

import torch
from torch.nn.functional import cross_entropy

from edgestill.distill.packing import Packed


def label_rationale_loss(
    logits: torch.Tensor, packed: Packed, rationale_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 - w) * mean CE over label tokens + w * mean CE over rationale tokens, in nats.

    The multi-task loss of distilling step-by-step as used with zero-shot teachers (arXiv 2403.15886; 2305.02301):
    each task is a mean over its own tokens, so a long reason does not drown a short label. A batch without reasons
    gives the label loss alone.

    Args:
        logits: (N, V), one row for each position that carries loss, in the order of `packed.targets`.
        packed: targets (N,) and tasks (N,).
        rationale_weight: w in [0, 1).

    Returns:
        (loss, parts): the scalar to minimise and a detached (2,) tensor of label and rationale loss; the latter is
        nan without reasons.
    """
    losses = cross_entropy(logits.float(), packed.targets, reduction="none")
    label = losses[packed.tasks == 0].mean()
    reasons = losses[packed.tasks == 1]
    parts = torch.stack([label, reasons.mean()]).detach()
    if len(reasons) == 0:
        return label, parts
    return (1 - rationale_weight) * label + rationale_weight * reasons.mean(), parts
