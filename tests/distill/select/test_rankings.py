"""Rankings are pure functions: permutations, equal to what a slow reading of their formulas gives, blind to order."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgestill.distill.select.entropy import Entropy, entropies_nats
from edgestill.distill.select.k_centre import KCentre, farthest_first
from edgestill.distill.select.least_confidence import LeastConfidence, log_confidence
from edgestill.distill.select.margin import Margin, margins
from edgestill.distill.select.random import Random
from edgestill.distill.select.rounds import Look, Rounds
from edgestill.distill.select.table import STRATEGIES

Floats = NDArray[np.float64]
KINDS: list[type[Rounds]] = [Random, LeastConfidence, Margin, Entropy, KCentre]


def a_strategy(kind: type[Rounds]) -> Rounds:
    return kind(strategy=kind.model_fields["strategy"].default, rows=10)


@st.composite
def looks(draw: st.DrawFn) -> Look:
    """A few rows: probabilities from a coarse grid, so that there are ties, zeros and ones; points likewise."""
    count, labels, sets = draw(st.integers(1, 9)), draw(st.integers(2, 4)), draw(st.booleans())
    grid = st.integers(0, 6)
    raw = np.array([[draw(grid) for _ in range(labels)] for _ in range(count)], dtype=float)
    shares = raw / 6 if sets else (raw + 1e-9) / (raw + 1e-9).sum(-1, keepdims=True)
    points = np.array([[draw(st.integers(-3, 3)) for _ in range(2)] for _ in range(count)], dtype=float)
    learnt = np.array([[draw(st.integers(-3, 3)) for _ in range(2)] for _ in range(draw(st.integers(0, 3)))])
    luck = np.array(draw(st.permutations(range(count)))) / count
    return Look([str(i) for i in range(count)], luck, shares, points, learnt.reshape(-1, 2).astype(float), sets)


def reordered(look: Look, order: list[int]) -> Look:
    rows: dict[str, Any] = {name: getattr(look, name)[order] for name in ("luck", "probabilities", "embeddings")}
    return Look([look.texts[i] for i in order], **rows, learnt=look.learnt, sets=look.sets)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(look=looks())
def test_a_ranking_is_a_permutation_and_a_shorter_one_its_beginning(kind: type[Rounds], look: Look) -> None:
    whole = a_strategy(kind).rank(look, len(look.texts)).tolist()
    assert sorted(whole) == list(range(len(look.texts)))
    for count in range(len(whole)):
        assert a_strategy(kind).rank(look, count).tolist() == whole[:count]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(look=looks(), data=st.data())
def test_a_ranking_does_not_depend_on_the_order_of_the_rows(
    kind: type[Rounds], look: Look, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(look.texts))))
    ranked, other = a_strategy(kind).rank(look, 3), reordered(look, list(order))
    again = a_strategy(kind).rank(other, 3)
    assert [look.texts[i] for i in ranked] == [other.texts[i] for i in again]


def answers(row: list[float], sets: bool) -> list[float]:
    """The probability of every answer that a row may have: of each label, or of each set of independent labels."""
    if not sets:
        return row
    given = itertools.product([True, False], repeat=len(row))
    return [math.prod(p if has else 1 - p for p, has in zip(row, one, strict=True)) for one in given]


def naive_entropy(chances: list[float]) -> float:
    return -sum(p * math.log(p) for p in chances if p > 0)


@settings(deadline=None)
@given(look=looks())
def test_scores_are_those_of_all_possible_answers(look: Look) -> None:
    every = [sorted(answers(row, look.sets)) for row in look.probabilities.tolist()]
    gap = [chances[-1] - chances[-2] for chances in every]
    found = margins(look.probabilities, look.sets)
    assert np.exp(log_confidence(look.probabilities, look.sets)) == pytest.approx([c[-1] for c in every], abs=1e-12)
    assert (np.exp(found) if look.sets else found) == pytest.approx(gap, abs=1e-12)
    assert entropies_nats(look.probabilities, look.sets) == pytest.approx(list(map(naive_entropy, every)), abs=1e-9)


@settings(deadline=None)
@given(look=looks())
def test_the_least_sure_rows_come_first(look: Look) -> None:
    every = [sorted(answers(row, look.sets)) for row in look.probabilities.tolist()]
    wanted = {
        LeastConfidence: [chances[-1] for chances in every],
        Margin: [chances[-1] - chances[-2] for chances in every],
        Entropy: [-naive_entropy(chances) for chances in every],
        Random: look.luck.tolist(),
    }
    for kind, scores in wanted.items():
        ranked = [scores[i] for i in a_strategy(kind).rank(look, len(scores))]
        assert all(one <= other + 1e-9 for one, other in itertools.pairwise(ranked)), kind


def test_between_equals_the_luckier_row_goes_first() -> None:
    equal, point = np.full((4, 2), 0.5), np.ones((4, 2))
    look = Look(list("abcd"), np.array([0.3, 0.1, 0.4, 0.2]), equal, point, point[:1])
    for kind in KINDS:
        assert a_strategy(kind).rank(look, 4).tolist() == [1, 3, 0, 2], kind


def radius(points: Floats, centres: Floats) -> float:
    """The greatest distance of a point to its nearest centre."""
    return max(min(math.dist(point, centre) for centre in centres) for point in points)


@settings(max_examples=200, deadline=None)
@given(look=looks(), count=st.integers(1, 4))
def test_k_centre_covers_within_twice_the_best_possible(look: Look, count: int) -> None:
    points, count = look.embeddings, min(count, len(look.texts))
    taken = farthest_first(points, look.learnt, look.luck, count)
    best = min(
        radius(points, np.concatenate([look.learnt, points[list(some)]]))
        for some in itertools.combinations(range(len(points)), count)
    )
    assert radius(points, np.concatenate([look.learnt, points[taken]])) <= 2 * best + 1e-9


@settings(deadline=None)
@given(look=looks())
def test_each_row_that_k_centre_takes_is_the_farthest_of_those_left(look: Look) -> None:
    points = look.embeddings
    taken = farthest_first(points, look.learnt, look.luck, len(points)).tolist()
    for place, row in enumerate(taken):
        centres = [*look.learnt, *points[taken[:place]]]
        reach = {
            i: min((math.dist(points[i], centre) for centre in centres), default=math.inf)
            for i in range(len(points))
            if i not in taken[:place]
        }
        assert reach[row] == pytest.approx(max(reach.values()))


def test_many_sure_labels_do_not_hide_the_one_that_is_not() -> None:
    rows = np.full((2, 5_000), 0.6)  # a whole set has a probability of 1e-1109, which is 0 in a float
    rows[1, 7] = 0.55
    look = Look(["a", "b"], np.array([0.1, 0.2]), rows, rows, rows[:0], sets=True)
    for kind in (LeastConfidence, Margin, Entropy):
        assert a_strategy(kind).rank(look, 2).tolist() == [1, 0], kind


def test_every_strategy_of_the_table_is_called_what_its_section_says() -> None:
    assert {name: kind.model_fields["strategy"].default for name, kind in STRATEGIES.items()} == {
        name: name for name in STRATEGIES
    }


def test_k_centre_keeps_away_from_what_is_learnt_from() -> None:
    points = np.array([[0.0], [10.0], [4.0]])
    for learnt, first in ((10.0, 0), (0.0, 1)):
        look = Look(list("abc"), np.array([0.2, 0.3, 0.1]), points, points, np.array([[learnt]]))
        assert a_strategy(KCentre).rank(look, 1).tolist() == [first]
