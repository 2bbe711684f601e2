"""runtime.metrics against scipy, against hand, and against what must always hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgestill.runtime import metrics

COUNTS = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
LABELS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=60)


@given(COUNTS)
def test_wilson_is_scipys_and_holds_its_value(counts):
    successes, n = counts
    found = metrics.wilson(successes, n)
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert found.value == successes / n
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


@given(COUNTS)
def test_wilson_of_the_failures_mirrors_that_of_the_successes(counts):
    successes, n = counts
    found, mirrored = metrics.wilson(successes, n), metrics.wilson(n - successes, n)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_wilson_of_nothing_is_unknown():
    assert metrics.wilson(0, 0) is None


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_symmetric_and_the_exact_binomial_test(only_a, only_b):
    found = metrics.mcnemar_exact(only_a, only_b)
    assert found == metrics.mcnemar_exact(only_b, only_a)
    if only_a + only_b:
        assert found == pytest.approx(binomtest(only_a, only_a + only_b, 0.5).pvalue)
    else:
        assert found == 1.0


def test_mcnemar_by_hand():
    # 1 against 7 of 8 discordant rows: 2 * (C(8,0) + C(8,1)) / 2^8
    assert metrics.mcnemar_exact(1, 7) == 2 * 9 / 256


@given(PAIRS)
@settings(max_examples=25)
def test_a_paired_difference_lies_in_its_interval_and_changes_sign_with_the_order(pairs):
    a, b = zip(*pairs, strict=True)
    there, back = metrics.paired_test(a, b), metrics.paired_test(b, a)
    assert there.difference.low - 1e-12 <= there.difference.value <= there.difference.high + 1e-12
    assert there.difference.value == pytest.approx((sum(a) - sum(b)) / len(a))
    assert (there.only_a, there.only_b) == (back.only_b, back.only_a)
    assert there.difference.low == pytest.approx(-back.difference.high)


def test_equal_systems_differ_by_nothing():
    found = metrics.paired_test([True, False, True], [True, False, True])
    assert (found.difference.low, found.difference.value, found.difference.high) == (0, 0, 0)
    assert found.p_value == 1.0


@given(LABELS)
@settings(max_examples=25)
def test_macro_f1_is_the_mean_of_the_labels_f1(rows):
    truth, predicted = (list(column) for column in zip(*rows, strict=True))
    scores = []
    for name in sorted({*truth, *predicted}):
        hits = sum(t == p == name for t, p in rows)
        scores.append(2 * hits / (truth.count(name) + predicted.count(name)))
    found = metrics.macro_f1(truth, predicted)
    assert found.value == pytest.approx(np.mean(scores))
    assert 0 <= found.low <= found.high <= 1


def test_macro_f1_of_a_perfect_system_is_one_and_of_no_rows_unknown():
    assert metrics.macro_f1(["a", "b"], ["a", "b"]) == metrics.Estimate(1.0, 1.0, 1.0)
    assert metrics.macro_f1([], []) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_among_its_samples(samples, q):
    found = metrics.quantile(samples, q, 1)
    assert min(samples) - 1e-6 <= found <= max(samples) + 1e-6


@pytest.mark.parametrize(
    "q, fewest", [(0.5, metrics.MIN_SAMPLES_P50), (0.9, metrics.MIN_SAMPLES_P90), (0.99, metrics.MIN_SAMPLES_P99)]
)
def test_a_quantile_needs_the_samples_of_its_95_percent_bound(q, fewest):
    assert 1 - q**fewest >= 0.95
    assert 1 - q ** (fewest - 1) < 0.95
    assert metrics.quantile([1.0] * (fewest - 1), q, fewest) is None
    assert metrics.quantile([1.0] * fewest, q, fewest) == 1.0
