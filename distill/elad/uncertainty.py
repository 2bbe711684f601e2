"""How unsure a student is within its explanation and between explanations: numbers from answers. Runs no model.

ELAD's signals (arXiv 2402.13098) in our reading: the abstract names the two parts and a review describes the first as
answers before and after a step; formulas, weights and what "inter" is exactly are ours. All values are in [0, 1].
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def js_divergence_nats(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Jensen-Shannon divergence of two distributions (L,): 0 for equal ones, ln 2 for ones that share nothing."""
    middle = (p + q) / 2
    return max(0.0, (_kl_nats(p, middle) + _kl_nats(q, middle)) / 2)


def _kl_nats(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum())


def intra_soft(trace: Sequence[NDArray[np.float64]]) -> float:
    """Mean over n steps of JS(P_i-1, P_i) / ln 2, of a trace P_0 ... P_n of label probabilities (L,).

    0 for an explanation without steps: it holds nothing to doubt.
    """
    found = [js_divergence_nats(before, after) / math.log(2) for before, after in pairwise(trace)]
    return min(1.0, sum(found) / len(found)) if found else 0.0


def intra_hard(trace: Sequence[str]) -> float:
    """Share of n steps that change the answer, of a trace a_0 ... a_n; 0 without steps."""
    found = [before != after for before, after in pairwise(trace)]
    return sum(found) / len(found) if found else 0.0


def inter(votes: Sequence[Sequence[str]], answers: int | None = None) -> float:
    """Mean over starting points of the entropy of K sampled answers, as a share of the most that K can have.

    That is ln K, or the logarithm of the number of `answers` there are where it is lower. Each starting point needs
    at least two samples: the entropy of one says nothing.
    """
    found = [_entropy_nats(each) / math.log(min(len(each), answers or len(each))) for each in votes]
    return min(1.0, sum(found) / len(found)) if found else 0.0


def _entropy_nats(said: Sequence[str]) -> float:
    shares = [count / len(said) for count in Counter(said).values()]
    return -sum(share * math.log(share) for share in shares)


def blend(within: float, between: float, beta: float) -> float:
    """Beta * U_intra + (1 - beta) * U_inter."""
    return beta * within + (1 - beta) * between
