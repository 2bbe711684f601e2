"""How far a student's next-token distribution is from a teacher's: pure functions, each with its gradient.

A measure takes natural-log probabilities of both over the same M outcomes and gives the divergence in nats of each of n
rows and its derivative by the student's log-probabilities, these taken as free. All of them are f-divergences, so that
over fewer, joined outcomes none is larger than over all of them (data-processing inequality).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from edgestill.distill.white_box.section import WhiteBoxSection

HEAD_ROWS = 96
LEAST_LOG = -80.0  # of the joined outcomes' share, which may underflow

Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p log(p / q), p the teacher's (Hinton et al., arXiv 1503.02531)."""
    p = log_p.exp()
    return torch.linalg.vecdot(p, log_p - log_q), -p


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p), which seeks a mode of the teacher's instead of covering all (MiniLLM, arXiv 2306.08543)."""
    q, apart = log_q.exp(), log_q - log_p
    return torch.linalg.vecdot(q, apart), q * (apart + 1)


def jsd(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Generalised JSD, b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q (GKD, arXiv 2306.13649), 0 < b < 1.

    Divided by b it tends to the forward KL as b goes to 0, divided by 1 - b to the reverse KL as b goes to 1.
    """
    log_m = _mixed(log_p, log_q, beta)
    q, apart = log_q.exp(), log_q - log_m
    found = beta * torch.linalg.vecdot(log_p.exp(), log_p - log_m) + (1 - beta) * torch.linalg.vecdot(q, apart)
    return found, (1 - beta) * q * apart


def skew_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """KL(p || a p + (1 - a) q) (DistiLLM, arXiv 2402.03898), 0 <= a < 1; a = 0 is the forward KL."""
    log_m, p = _mixed(log_p, log_q, alpha), log_p.exp()
    return torch.linalg.vecdot(p, log_p - log_m), -(1 - alpha) * p * (log_q - log_m).exp()


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """KL(q || (1 - a) p + a q) (DistiLLM, arXiv 2402.03898), 0 <= a < 1; a = 0 is the reverse KL."""
    log_m, q = _mixed(log_p, log_q, 1 - alpha), log_q.exp()
    apart = log_q - log_m
    return torch.linalg.vecdot(q, apart), q * (apart + 1 - alpha * apart.exp())


def _mixed(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q), 0 <= share <= 1."""
    if share in (0.0, 1.0):
        return log_p if share else log_q
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def measure_of(section: WhiteBoxSection) -> Measure:
    """The measure that a recipe names, with its settings."""
    plain: dict[str, Measure] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}
    skewed = {"skew_kl": skew_kl, "skew_reverse_kl": skew_reverse_kl}
    if section.divergence in skewed:
        return functools.partial(skewed[section.divergence], alpha=section.alpha)
    return plain.get(section.divergence) or functools.partial(jsd, beta=section.beta)


class Wanted(Protocol):
    """A teacher's distributions at N positions."""

    def log_p(self, here: slice) -> tuple[Tensor, Tensor | None]:
        """(n, M) of some positions, and the (n, K) token ids they are of; None: the whole vocabulary in order.

        With ids M is K + 1, the last outcome being any other token, or K where there is none.
        """


@dataclass(frozen=True)
class Whole:
    """Distributions as hidden states (N, H) and the head (V, H) that reads them, logits divided by a temperature."""

    hidden: Tensor
    head: Tensor
    temperature: float = 1.0

    def log_p(self, here: slice) -> tuple[Tensor, None]:
        """See `Wanted`; (n, V)."""
        return log_shares(self.hidden[here], self.head, self.temperature), None


def log_shares(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """Softmax(z / T) in logarithms, of the logits z = hidden head', in float32: (n, H), (V, H) -> (n, V)."""
    return (hidden @ head.t()).float().div_(temperature).log_softmax(-1)


def joined(logs: Tensor, ids: Tensor) -> Tensor:
    """Log shares of the tokens `ids`, then of all others as one: (n, V), (n, K) -> (n, K + 1), or (n, V) for K = V."""
    picked = logs.gather(-1, ids)
    if ids.shape[-1] == logs.shape[-1]:
        return picked
    rest = logs.exp().scatter_(-1, ids, 0.0).sum(-1, keepdim=True)
    return torch.cat([picked, rest.log_().clamp_min_(LEAST_LOG)], -1)


def head_divergences(hidden: Tensor, head: Tensor, wanted: Wanted, measure: Measure, temperature: float) -> Tensor:
    """Divergence in nats, times T squared, of a student's distribution from `wanted` at each of N positions: (N,).

    The student's logits are divided by T; `wanted` has its own temperature, wanted to be the same. The factor keeps
    gradients as large (arXiv 1503.02531).

    Args:
        hidden: (N, H) the student's.
        head: (V, H) the student's, frozen.
        wanted: N distributions.
        measure: one of this file.
        temperature: T.
    """
    found: Tensor = _HeadDivergence.apply(hidden, head, wanted, measure, temperature)
    return found


class _HeadDivergence(Function):
    """Head and divergence at once, some rows at a time; the gradient is made along with the value.

    Logits of all N rows over the vocabulary would be most of a pass's memory.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, wanted: Wanted, measure: Measure, temperature: float) -> Tensor:
        found, gradient = hidden.new_empty(len(hidden), dtype=torch.float32), torch.empty_like(hidden)
        for start in range(0, len(hidden), HEAD_ROWS):
            here = slice(start, start + HEAD_ROWS)
            log_q = log_shares(hidden[here], head, temperature)
            log_p, ids = wanted.log_p(here)
            found[here], slope = measure(log_p, log_q if ids is None else joined(log_q, ids))
            if ctx.needs_input_grad[0]:
                gradient[here] = by_logits(log_q, slope, ids).mul_(temperature).to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return found.mul_(temperature**2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None, None


def by_logits(log_q: Tensor, slope: Tensor, ids: Tensor | None) -> Tensor:
    """From a measure's derivative by log-probabilities to that by logits: (n, V), destroys `log_q`.

    log softmax has the derivative 1[i = j] - q_j. The joined outcome's goes to its tokens by their shares of it.

    Args:
        log_q: (n, V) the student's.
        slope: (n, V), or over the outcomes that `ids` makes.
        ids: (n, K), None where each token is an outcome.
    """
    total = slope.sum(-1, keepdim=True)
    q = log_q.exp_()
    if ids is None:
        return slope.addcmul_(q, total, value=-1)
    count = ids.shape[-1]
    own = slope[:, :count] - q.gather(-1, ids) * total
    if count < slope.shape[-1]:
        rest = q.scatter(-1, ids, 0.0).sum(-1, keepdim=True).clamp_min_(math.exp(LEAST_LOG))
        total = total - slope[:, count:] / rest
    return q.mul_(-total).scatter_(-1, ids, own)
