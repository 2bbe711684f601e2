"""What is said of a difference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.benchmarks.reference import Answers
from edgestill.benchmarks.verdict import LOSES, UNDECIDED, WINS, compare, decide, say
from edgestill.runtime.metrics import Estimate


def answers(name, labels):
    return Answers(name, "artifact", tuple(labels), (), "here", "")


def test_the_counts_of_a_comparison_are_those_of_the_rows():
    truth = ["a"] * 20
    found = compare(answers("A", ["a"] * 18 + ["b"] * 2), answers("B", ["b"] * 5 + ["a"] * 15), truth)
    assert (found.only_a, found.only_b) == (5, 2)
    assert found.difference.value == pytest.approx(0.15)
    assert found.p_value == pytest.approx(2 * (1 + 7 + 21) / 2**7)  # two-sided binomial: at most 2 of 7
    assert found.outcome == UNDECIDED


def test_sentences_name_winner_points_and_interval():
    won = Estimate(0.123, 0.061, 0.185)
    lost = Estimate(-0.123, -0.185, -0.061)
    even = Estimate(0.0, -0.03, 0.03)
    assert say("student", "floor", won, WINS) == "the student beats the floor by 12.3 points [6.1, 18.5]"
    assert say("student", "floor", lost, LOSES) == "the floor wins by 12.3 points [6.1, 18.5] over the student"
    assert say("student", "floor", even, UNDECIDED) == (
        "no difference shown between the student and the floor: +0.0 points [-3.0, +3.0]"
    )


def test_a_difference_needs_both_the_test_and_the_interval():
    assert decide(Estimate(0.1, 0.01, 0.2), 0.04) == WINS
    assert decide(Estimate(0.1, 0.01, 0.2), 0.06) == UNDECIDED
    assert decide(Estimate(0.1, -0.01, 0.2), 0.04) == UNDECIDED
    assert decide(Estimate(-0.1, -0.2, -0.01), 0.04) == LOSES


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40)
)
def test_swapping_the_systems_mirrors_the_verdict(rows):
    truth, a, b = zip(*rows, strict=True)
    there = compare(answers("A", a), answers("B", b), truth)
    back = compare(answers("B", b), answers("A", a), truth)
    mirrored = {WINS: LOSES, LOSES: WINS, UNDECIDED: UNDECIDED}
    assert back.outcome == mirrored[there.outcome]
    assert (back.only_a, back.only_b, back.p_value) == (there.only_b, there.only_a, there.p_value)
    assert back.difference.value == pytest.approx(-there.difference.value)


def test_not_inferior_is_shown_by_the_lower_end_and_not_by_the_difference():
    truth = ["a"] * 400
    alike = compare(answers("A", truth), answers("B", truth), truth)
    assert (alike.margin, alike.non_inferior) == (0.03, True)
    few = compare(answers("A", truth[:40]), answers("B", truth[:40]), truth[:40])
    assert not few.non_inferior, "40 rows on which both are right can hide 8.8 points"
    worse = compare(answers("A", ["b"] * 8 + truth[8:]), answers("B", truth), truth)
    assert worse.difference.value == pytest.approx(-0.02)
    assert not worse.non_inferior
