"""A mean over test rows and seeds with its interval. Knows no arm and no file.

Rows and seeds are both a sample: the same rows are answered by the student of every seed. The variance of the mean is
that of a crossed two-way random-effects design, by the sums of squares of Cornfield and Tukey (1956), as for readers
who all see the same cases (Hillis 2007, doi 10.1002/sim.2532); the degrees of freedom are Satterthwaite's (1946).
"""

from collections.abc import Mapping
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime.metrics import Estimate, unseen_share, wilson

Values = Mapping[int, Mapping[str, float]]


def mean_right(right: Values) -> Estimate:
    """Share of right answers, pooled over the seeds, with a 95 % interval.

    Wilson's interval where there is one seed, or where all answers are right or all wrong: there no spread is seen.

    Args:
        right: by seed and row id, 1 for right, 0 for wrong; at least one row.
    """
    rows = np.array([value for by_row in right.values() for value in by_row.values()], float)
    if len(right) > 1 and rows.min() != rows.max():
        found = pooled(right)
        return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))
    each = len(next(iter(right.values())))
    found_one = wilson(round(float(rows.mean()) * each), each)
    assert found_one is not None
    return found_one


def mean_difference(gains: Values) -> Estimate:
    """Mean of paired differences, -1, 0 or 1 a row, pooled over the seeds, with a 95 % interval.

    Where no row differs it is the share that may differ although none of these rows does: `metrics.unseen_share`.

    Args:
        gains: by seed and row id; at least one row.
    """
    if not any(value for by_row in gains.values() for value in by_row.values()):
        unseen = unseen_share(len(next(iter(gains.values()))))
        return Estimate(0.0, -unseen, unseen)
    found = pooled(gains)
    return Estimate(found.value, max(-1.0, found.low), min(1.0, found.high))


def pooled(values: Values) -> Estimate:
    """The mean of all values with a 95 % interval that holds for other rows and other seeds.

    With S seeds and N rows, MS of rows, seeds and their interaction: the variance of the mean is
    (max(MS_rows, MS_both) + max(0, MS_seeds - MS_both)) / (S N), with S - 1 degrees of freedom at least. Rows that some
    seeds lack are left out of it. Seeds that share less than half of their rows have nothing to cross: there the means
    of the seeds are the sample, and no mean is surer than its rows make it. One seed has no spread: there the rows are.
    """
    from scipy.stats import t

    each = [np.array(list(by_row.values()), float) for by_row in values.values()]
    means = np.array([row.mean() for row in each])
    value = float(means.mean())
    ids = [one for one in next(iter(values.values())) if all(one in by_row for by_row in values.values())]
    if 2 * len(ids) < max(map(len, each)):
        within = np.mean([row.var() / len(row) for row in each])
        variance, freedom = float(max(means.var(ddof=1), within) / len(means)), float(len(means) - 1)
    else:
        variance, freedom = _variance(np.array([[by_row[one] for one in ids] for by_row in values.values()], float))
    half = float(t.ppf(0.975, freedom)) * sqrt(variance) if variance else 0.0
    return Estimate(value, value - half, value + half)


def _variance(table: NDArray[np.float64]) -> tuple[float, float]:
    """(variance of the mean, degrees of freedom) of S seeds by N rows."""
    seeds, rows = table.shape
    if rows == 1:
        return 0.0, 1.0
    if seeds == 1:
        return float(table.var(ddof=1) / rows), float(rows - 1)
    mean, of_seeds, of_rows = table.mean(), table.mean(1), table.mean(0)
    ms_seeds = rows * float(((of_seeds - mean) ** 2).sum()) / (seeds - 1)
    ms_rows = seeds * float(((of_rows - mean) ** 2).sum()) / (rows - 1)
    rest = table - of_seeds[:, None] - of_rows[None, :] + mean
    ms_both = float((rest**2).sum()) / ((seeds - 1) * (rows - 1))
    ms_rows = max(ms_rows, ms_both)  # less is chance: the rows' own part is not below 0
    if ms_seeds <= ms_both:
        return ms_rows / (seeds * rows), float(rows - 1)
    total = ms_rows + ms_seeds - ms_both
    parts = ms_rows**2 / (rows - 1) + ms_seeds**2 / (seeds - 1) + ms_both**2 / ((seeds - 1) * (rows - 1))
    return total / (seeds * rows), max(total**2 / parts, float(seeds - 1))
