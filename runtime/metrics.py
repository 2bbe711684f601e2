"""Accuracy, macro-F1, agreement, their 95 % intervals, paired tests, calibration. numpy only; no file, no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
RESAMPLES = 10_000
# Fewest samples with a distribution-free 95 % upper bound for the quantile: 1 - q**n >= 0.95.
MIN_SAMPLES_P50, MIN_SAMPLES_P90, MIN_SAMPLES_P99 = 5, 29, 299
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, both in the value's own unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Two systems on the same rows.

    `difference` is accuracy of A minus accuracy of B; `only_a`, `only_b` count rows that one of them alone has right;
    `p_value` is McNemar's exact two-sided test.
    """

    difference: Estimate
    only_a: int
    only_b: int
    p_value: float


def wilson(successes: int, n: int) -> Estimate | None:
    """A proportion with Wilson's score interval (Wilson 1927); None for n = 0."""
    if n == 0:
        return None
    p = successes / n
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def unseen_share(n: int) -> float:
    """The share of all cases that may be so although none of n >= 1 rows is: the upper end of `wilson(0, n)`.

    For a paired difference without a discordant row it is the end of Tango's score interval (Tango 1998), where a
    bootstrap interval has no width.
    """
    return Z_95**2 / (n + Z_95**2)


def macro_f1(truth: Sequence[str], predicted: Sequence[str], seed: int = 0) -> Estimate | None:
    """Mean F1 over the labels that occur in truth or prediction, with a bootstrap percentile interval over rows.

    None without rows. A resample is scored over the labels that occur in it, as the value itself is.
    """
    if not truth:
        return None
    names = sorted({*truth, *predicted})
    index = {name: i for i, name in enumerate(names)}
    t = np.array([index[x] for x in truth])
    p = np.array([index[x] for x in predicted])
    rng = np.random.default_rng(seed)
    draws = [_macro_f1(t[rows], p[rows], len(names)) for rows in rng.integers(0, len(t), (RESAMPLES // 10, len(t)))]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(_macro_f1(t, p, len(names)), float(low), float(high))


def _macro_f1(truth: NDArray[np.int64], predicted: NDArray[np.int64], n_labels: int) -> float:
    hits = np.bincount(truth[truth == predicted], minlength=n_labels)
    total = np.bincount(truth, minlength=n_labels) + np.bincount(predicted, minlength=n_labels)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def paired_test(right_a: Sequence[bool], right_b: Sequence[bool], seed: int = 0) -> PairedTest:
    """Compare two systems on the same rows: McNemar's exact test and a paired bootstrap of the difference.

    Args:
        right_a: whether A had row i right; same order and length N as `right_b`, N >= 1.
        right_b: the same for B.
        seed: of the bootstrap (10,000 resamples, percentile interval).
    """
    a, b = np.array(right_a, bool), np.array(right_b, bool)
    delta = a.astype(np.int64) - b
    rng = np.random.default_rng(seed)
    draws = delta[rng.integers(0, len(delta), (RESAMPLES, len(delta)))].mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    estimate = Estimate(float(delta.mean()), float(low), float(high))
    return PairedTest(estimate, only_a, only_b, mcnemar_exact(only_a, only_b))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact binomial p-value of the discordant pairs (McNemar 1947); 1.0 without any."""
    n, k = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)


def quantile(samples: Sequence[float], q: float, min_samples: int) -> float | None:
    """The q-quantile, or None when there are fewer than `min_samples` samples to say it from."""
    return float(np.quantile(np.asarray(samples, float), q)) if len(samples) >= min_samples else None


def expected_calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float | None:
    """Mean over rows of how far a bin's accuracy is from its mean confidence, in shares of 1; None without rows.

    15 bins of equal width, each open below and closed above (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599).
    It is biased upward on few rows, where chance alone moves a bin's accuracy away from its confidence.

    Args:
        confidences: probability that row i is right, 0 to 1, length N.
        right: whether it is; same order and length.
    """
    p, hit = np.asarray(confidences, float), np.asarray(right, bool)
    if not len(p):
        return None
    bins = np.clip(np.ceil(p * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return float(np.abs(np.bincount(bins, hit - p)).sum() / len(p))


def coverage_risk(confidences: Sequence[float], right: Sequence[bool]) -> tuple[list[float], list[float]]:
    """(coverage, risk): share of the rows answered, and of those the share wrong, from the surest rows to all of them.

    One point for each different confidence, since no threshold parts rows that are equally sure; both lists are empty
    without rows. El-Yaniv and Wiener 2010.

    Args:
        confidences: how sure of row i, higher is surer, length N.
        right: whether it is right; same order and length.
    """
    values, places = np.unique(-np.asarray(confidences, float), return_inverse=True)
    answered = np.bincount(places, minlength=len(values)).cumsum()
    wrong = np.bincount(places, ~np.asarray(right, bool), len(values)).cumsum()
    return (answered / max(len(places), 1)).tolist(), (wrong / answered).tolist()


def area_under_risk(coverage: Sequence[float], risk: Sequence[float]) -> float | None:
    """Area under the risk-coverage curve of `coverage_risk`: the mean risk over all coverages; None without a point.

    Each point stands for the coverage since the one before it, so that without ties it is the mean of the N risks
    (AURC of Geifman et al. 2019, arXiv 1805.08206). Lower is better; the error rate itself where confidence says
    nothing.
    """
    return float(np.diff(coverage, prepend=0.0) @ np.asarray(risk, float)) if len(coverage) else None
