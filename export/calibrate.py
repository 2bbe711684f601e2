"""Temperatures for `runtime.confidence`, from what the engines that ship answered on the development rows.

Runs no model: the gates have asked the engines already.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime import label_sets
from edgestill.runtime.confidence import Calibration, Temperature, log_odds
from edgestill.runtime.decode import Probabilities, log_softmax
from edgestill.runtime.metrics import expected_calibration_error
from edgestill.runtime.task import Task

MIN_ROWS = 50
JUDGE = "teacher"  # no development row holds gold
FOLDS = 5
STEPS = 60  # halvings of the interval: to the last bit of a float64
LOWEST, HIGHEST = 0.05, 20.0

Places = NDArray[np.int64]


def calibrate(
    answers: Mapping[str, Probabilities], rows: Sequence[Mapping[str, Any]], task: Task
) -> Calibration | None:
    """One temperature for each engine; None with fewer than `MIN_ROWS` judged rows. The judge is the teacher.

    None for a task that generates too: its confidence is the probability of one text among all, to which no outcomes
    that a temperature could be fitted to are known.

    Args:
        answers: by engine, the (N, L) probabilities of the first N of `rows`, as `decode.task_probabilities`.
        rows: of dev.jsonl, with the teacher's label.
        task: whose labels they are.
    """
    if task.is_written:
        return None
    answered = rows[: min(map(len, answers.values()))]
    places = [i for i, row in enumerate(answered) if row.get("label") is not None]
    if len(places) < MIN_ROWS:
        return None
    truth = [rows[i]["label"] for i in places]
    return Calibration(tuple(_temperature(engine, p[places], truth, task) for engine, p in answers.items()))


def _temperature(engine: str, p: Probabilities, truth: Sequence[str], task: Task) -> Temperature:
    odds = log_odds(p, task.is_multilabel)
    wanted, said = _decisions(p, truth, task)
    folds = np.random.default_rng(0).permutation(len(p)) % FOLDS
    folds = np.repeat(folds, len(odds) // len(p))  # the labels of one row stay together
    held_out = np.empty(len(odds))
    for fold in range(FOLDS):
        inside = folds == fold
        held_out[inside] = fit_temperature(odds[~inside], wanted[~inside])
    right = (wanted == said).tolist()
    before, after = (
        expected_calibration_error(_of_the_answer(odds / t, said).tolist(), right) for t in (1.0, held_out[:, None])
    )
    assert before is not None
    assert after is not None
    return Temperature(engine, fit_temperature(odds, wanted), len(p), JUDGE, before, after)


def fit_temperature(odds: Probabilities, truth: Places) -> float:
    """The temperature with the smallest cross-entropy of M decisions, between `LOWEST` and `HIGHEST`.

    The cross-entropy is convex in 1 / temperature: its slope's only zero is found by halving. One decision's worth of
    the truth is spread over all outcomes, after Platt 1999: where every answer was right, the rest are not certain.

    Args:
        odds: (M, K) log-probabilities of the K outcomes, up to a constant a row.
        truth: (M,) the outcome that was right.
    """
    decisions = len(odds)
    spread = 1 / (decisions + 1)
    possible = odds > log_odds(np.zeros((1, 1)), each_its_own=False)  # not a letter that a row has no choice for
    wanted = spread * possible / possible.sum(1, keepdims=True)
    wanted[np.arange(decisions), truth] += 1 - spread
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = ((np.exp(log_softmax(odds * middle)) - wanted) * odds).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 2 / (low + high)


def _decisions(p: Probabilities, truth: Sequence[str], task: Task) -> tuple[Places, Places]:
    """(right outcome, given outcome) of each row of `log_odds`: a label's place, of sets 1 where a label is held."""
    if task.is_multilabel:
        wanted = [[name in label_sets.split(text) for name in task.label_names] for text in truth]
        return np.array(wanted, np.int64).ravel(), (p >= task.threshold).astype(np.int64).ravel()
    return np.array([task.label_names.index(name) for name in truth]), p.argmax(1)


def _of_the_answer(odds: Probabilities, said: Places) -> Probabilities:
    return np.asarray(np.exp(log_softmax(odds))[np.arange(len(said)), said])
