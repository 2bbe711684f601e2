"""What is told of answers that are written, beside their equality: token F1, rows without an answer, tokens a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgestill.benchmarks.recall import judged_systems
from edgestill.benchmarks.reference import Answers, Reference
from edgestill.runtime import metrics
from edgestill.runtime.metrics import RESAMPLES, Estimate
from edgestill.runtime.written import F1, overlap


@dataclass(frozen=True)
class WrittenScores:
    """By system: mean token F1 against what judges, the share of rows without an answer, mean tokens written a row.

    `token_f1` is None for answers that are not compared by tokens, `tokens_a_row` where it was not counted.
    """

    token_f1: dict[str, Estimate | None]
    unanswered: dict[str, Estimate | None]
    tokens_a_row: dict[str, float | None]


def written_scores(reference: Reference, artifacts: Sequence[Answers]) -> WrittenScores | None:
    """Of every judged system; None for a task whose answers are labels."""
    if reference.match is None:
        return None
    judged = judged_systems(reference, artifacts)
    return WrittenScores(
        token_f1={s.name: _token_f1(s, reference) for s in judged},
        unanswered={s.name: metrics.wilson(s.labels.count(""), len(s.labels)) for s in judged},
        tokens_a_row={s.name: s.tokens_a_row for s in judged},
    )


def _token_f1(answers: Answers, reference: Reference) -> Estimate | None:
    if reference.match != F1:
        return None
    return mean([overlap(said, right, F1) for said, right in zip(answers.labels, reference.truth, strict=True)])


def mean(values: Sequence[float], seed: int = 0) -> Estimate | None:
    """The mean of N values with a bootstrap percentile interval over them; None for N = 0."""
    if not values:
        return None
    x, rng = np.asarray(values, float), np.random.default_rng(seed)
    draws = [float(x[rows].mean()) for rows in rng.integers(0, len(x), (RESAMPLES // 10, len(x)))]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(x.mean()), float(low), float(high))
