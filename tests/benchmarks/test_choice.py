"""The cheapest that is not shown to be worse than the best."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.benchmarks.choice import best_of, candidates_of, choose
from edgestill.benchmarks.reference import Answers, Reference
from edgestill.benchmarks.verdict import LOSES, compare
from edgestill.runtime import metrics

ROWS = 30
TRUTH = ["a"] * ROWS
# wrong answers on the first rows: systems are nested, so that a few more mistakes are all that tells two apart
SYSTEMS = st.lists(
    st.tuples(st.integers(0, ROWS), st.none() | st.floats(0.1, 100), st.integers(1, 3)), min_size=2, max_size=5
)


def answers(name, mistakes, latency_ms=1.0, size_bytes=1, kind="artifact"):
    labels = ["b"] * mistakes + ["a"] * (ROWS - mistakes)
    samples = () if latency_ms is None else (latency_ms,) * 5
    return Answers(name, kind, tuple(labels), samples, "here", "", bytes=size_bytes)


def ordered(systems):
    reference = Reference((), tuple(TRUTH), ("a", "b"), None, answers("teacher", 0, kind="teacher"), (), "", "classify")
    return candidates_of(reference, systems)


@given(SYSTEMS)
@settings(max_examples=40, deadline=None)
def test_nothing_cheaper_than_the_chosen_holds_up_and_the_chosen_does(systems):
    candidates = ordered([answers(str(i), *system) for i, system in enumerate(systems)])
    choice = choose(candidates, TRUTH)
    by_name = {c.name: c for c in candidates}
    best, place = by_name[choice.best], choice.candidates.index(choice.chosen)
    assert all(best.labels.count("a") >= c.labels.count("a") for c in candidates)
    assert choice.chosen not in choice.shown_worse
    assert set(choice.candidates[:place]) <= set(choice.shown_worse)
    for c in candidates:
        assert (compare(c, best, TRUTH).outcome == LOSES) == (c.name in choice.shown_worse)
    assert (choice.difference is None) == (choice.chosen == choice.best) == (choice.may_lose is None)
    if choice.difference is not None:
        assert choice.may_lose >= max(-choice.difference.low, metrics.unseen_share(ROWS))


@given(SYSTEMS)
def test_candidates_go_from_fast_to_slow_and_from_small_to_large(systems):
    order = ordered([answers(str(i), *system) for i, system in enumerate(systems)])
    costs = [(c.latencies_ms[0] if c.latencies_ms else float("inf"), c.bytes) for c in order]
    assert costs == sorted(costs)


def test_equal_answers_still_leave_room_for_a_loss():
    choice = choose([answers("cheap", 3), answers("also", 2), answers("dear", 2)], TRUTH)
    assert (choice.chosen, choice.best) == ("cheap", "also"), "of equals the cheapest is the best"
    alike = choose([answers("cheap", 1), answers("dear", 0)], TRUTH)
    assert alike.may_lose >= metrics.unseen_share(ROWS) > 0.1, "30 rows cannot show less than 11 points"


def test_a_cheap_one_that_is_shown_to_be_worse_is_not_chosen():
    choice = choose([answers("cheap", 12), answers("fair", 4), answers("dear", 0)], TRUTH)
    assert (choice.chosen, choice.best, choice.shown_worse) == ("fair", "dear", ("cheap",))


def test_the_floor_is_a_candidate_and_torch_is_not(handmade):
    everything_right = ["yes", "no"] * 20
    choice = handmade(floor=everything_right, artifact=everything_right, torch=everything_right).report().choice
    assert choice.candidates == ("floor", "student ONNX q4_0")
    assert (choice.chosen, choice.best) == ("floor", "floor")


def test_of_one_there_is_no_choice(handmade):
    assert choose([answers("only", 0)], TRUTH) is None
    assert handmade(floor=None).report().choice is None


def test_without_gold_the_best_agrees_most_with_the_teacher():
    systems = [answers("a", 5), answers("b", 1)]
    assert best_of(systems, TRUTH).name == "b"
    assert best_of(systems, ["b"] * ROWS).name == "a"


@pytest.mark.parametrize("n", [1, 40, 1000])
def test_the_unseen_share_is_wilsons_upper_end_of_nothing(n):
    assert metrics.unseen_share(n) == pytest.approx(metrics.wilson(0, n).high)
