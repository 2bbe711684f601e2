"""Calibration error and the risk-coverage curve: by hand, and what must always hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.runtime.metrics import area_under_risk, coverage_risk, expected_calibration_error

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80)
COARSE = st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=80)


def test_calibration_error_by_hand():
    # 0.95 and 0.99 share the last bin (14/15, 1]: |1.94 - 1|; 0.5 is alone: |0.5 - 1|; over 3 rows
    assert expected_calibration_error([0.95, 0.99, 0.5], [True, False, True]) == pytest.approx((0.94 + 0.5) / 3)


def test_errors_of_one_bin_cancel_and_those_of_two_do_not():
    assert expected_calibration_error([0.5, 0.5], [True, False]) == pytest.approx(0)
    assert expected_calibration_error([0.4, 0.6], [True, False]) == pytest.approx(0.6)


@pytest.mark.parametrize("bins", range(1, 15))
def test_there_are_fifteen_bins_closed_above(bins):
    edge, off = bins / 15, 1e-3
    # rows of one bin cancel where one is right and the other wrong; rows of two do not
    below = expected_calibration_error([edge, edge - off], [True, False])
    above = expected_calibration_error([edge, edge + off], [True, False])
    assert below == pytest.approx(abs(2 * edge - off - 1) / 2)
    assert above == pytest.approx((1 - edge + edge + off) / 2)


@given(ROWS)
def test_calibration_error_is_between_the_overall_gap_and_one(rows):
    p, right = zip(*rows, strict=True)
    found = expected_calibration_error(p, right)
    assert abs(np.mean(p) - np.mean(right)) - 1e-12 <= found <= 1


def test_a_forecast_that_is_certain_and_right_has_no_error():
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0


def test_curve_by_hand():
    coverage, risk = coverage_risk([0.5, 0.9, 0.7, 0.7], [False, True, True, False])
    assert coverage == [0.25, 0.75, 1.0]
    assert risk == pytest.approx([0, 1 / 3, 0.5])
    assert area_under_risk(coverage, risk) == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 * 0.5)


@given(COARSE)
def test_the_curve_ends_with_all_rows_and_their_error_rate_and_has_a_point_a_confidence(rows):
    p, right = zip(*rows, strict=True)
    coverage, risk = coverage_risk(p, right)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(1 - np.mean(right))
    assert coverage == sorted(set(coverage))
    assert len(coverage) == len(set(p))
    assert 0 <= area_under_risk(coverage, risk) <= 1


@given(ROWS)
def test_each_point_is_the_error_rate_of_the_rows_at_least_as_sure(rows):
    p, right = zip(*rows, strict=True)
    for threshold, share, risk in zip(sorted(set(p), reverse=True), *coverage_risk(p, right), strict=True):
        answered = [hit for q, hit in rows if q >= threshold]
        assert share == pytest.approx(len(answered) / len(rows))
        assert risk == pytest.approx(1 - np.mean(answered))


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_without_ties_the_area_is_the_mean_risk_and_sure_where_right_is_best(right):
    n = len(right)
    sure = np.argsort(np.argsort([not hit for hit in right], kind="stable")) / n  # a rank each, wrong rows highest
    best, worst = (area_under_risk(*coverage_risk(order, right)) for order in (-sure, sure))
    constant = area_under_risk(*coverage_risk([0.5] * n, right))
    assert best <= constant + 1e-12
    assert constant <= worst + 1e-12
    assert worst == pytest.approx(np.mean(coverage_risk(sure, right)[1]))
    assert constant == pytest.approx(1 - np.mean(right))


def test_no_row_is_unknown_and_not_zero():
    assert expected_calibration_error([], []) is None
    assert coverage_risk([], []) == ([], [])
    assert area_under_risk([], []) is None
