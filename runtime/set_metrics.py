"""Precision, recall, micro-F1 and macro-F1 of sets of labels, with 95 % intervals. numpy only; no file, no model.

Whether a whole set is right is a matter of equal or not: that is what `metrics` counts.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime.metrics import RESAMPLES, Estimate

Held = NDArray[np.bool_]  # (N, L): whether row n holds label l
Counts = NDArray[Any]  # whole numbers
F1 = Callable[[Counts, Counts, Counts], NDArray[np.float64]]


@dataclass(frozen=True)
class LabelScore:
    """One label: of the rows that were said to hold it the share that do, of those that do the share found, and F1.

    None where there are no such rows; F1 is None for a label that nobody holds and nobody was said to hold.
    """

    precision: float | None
    recall: float | None
    f1: float | None


def held(sets: Sequence[Collection[str]], labels: Sequence[str]) -> Held:
    """(N, L) of N sets; names that are not among the L labels are left out."""
    return np.array([[label in names for label in labels] for names in sets], bool).reshape(len(sets), len(labels))


def label_scores(truth: Held, predicted: Held) -> list[LabelScore]:
    """One score a label, in their order."""
    found = []
    for hits, wanted, said in zip(*_counts(truth, predicted), strict=True):
        precision, recall = _share(hits, said), _share(hits, wanted)
        found.append(LabelScore(precision, recall, _share(2 * hits, wanted + said)))
    return found


def micro_f1(truth: Held, predicted: Held, seed: int = 0) -> Estimate | None:
    """F1 over all N * L decisions at once, with a bootstrap percentile interval over rows.

    None where no row holds a label and none was said to: there is nothing to be found.
    """
    return _estimate(truth, predicted, _micro, seed)


def macro_f1(truth: Held, predicted: Held, seed: int = 0) -> Estimate | None:
    """Mean F1 over the labels that some row holds or was said to hold, with a bootstrap percentile interval over rows.

    None without such a label. A resample is scored over the labels that occur in it, as the value itself is.
    """
    return _estimate(truth, predicted, _macro, seed)


def labels_left_out(truth: Held, predicted: Held) -> int:
    """How many labels `macro_f1` leaves out: those that no row holds and none was said to hold."""
    return int((~(truth | predicted).any(0)).sum())


def _estimate(truth: Held, predicted: Held, f1: F1, seed: int) -> Estimate | None:
    rows = len(truth)
    if not rows or not (truth | predicted).any():
        return None
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES // 10)  # how often a resample has each row
    draws = f1(*(weights.astype(float) @ each for each in (truth & predicted, truth, predicted)))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Estimate(float(f1(*(each[None] for each in _counts(truth, predicted)))[0]), float(low), float(high))


def _counts(truth: Held, predicted: Held) -> tuple[Counts, Counts, Counts]:
    """(L,) each: rows that hold a label and were said to, that hold it, that were said to hold it."""
    return (truth & predicted).sum(0), truth.sum(0), predicted.sum(0)


def _micro(hits: Counts, wanted: Counts, said: Counts) -> NDArray[np.float64]:
    """(R, L) counts of R resamples -> (R,), nan where there is nothing."""
    total = (wanted + said).sum(1)
    return np.divide(2.0 * hits.sum(1), total, out=np.full(len(total), np.nan), where=total > 0)


def _macro(hits: Counts, wanted: Counts, said: Counts) -> NDArray[np.float64]:
    """(R, L) counts of R resamples -> (R,), nan where there is nothing."""
    total = wanted + said
    each = np.divide(2.0 * hits, total, out=np.zeros(total.shape), where=total > 0)
    occurring = (total > 0).sum(1)
    return np.divide(each.sum(1), occurring, out=np.full(len(total), np.nan), where=occurring > 0)


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
