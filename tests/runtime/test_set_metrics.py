"""F1 over labels, by hand and by its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.runtime import set_metrics
from edgestill.runtime.set_metrics import LabelScore, held, label_scores, labels_left_out, macro_f1, micro_f1

LABELS = ["a", "b", "c", "d"]
# a: 2 hits of 3 held, 2 said. b: 1 hit of 1 held, 2 said. c: held once, never said. d: neither.
TRUTH = held([{"a"}, {"a", "b"}, {"a", "c"}, set()], LABELS)
SAID = held([{"a"}, {"a", "b"}, set(), {"b"}], LABELS)

sets = st.lists(st.sets(st.sampled_from(LABELS)), min_size=6, max_size=6)


def test_the_four_labels_by_hand() -> None:
    assert label_scores(TRUTH, SAID) == [
        LabelScore(precision=1.0, recall=2 / 3, f1=4 / 5),
        LabelScore(precision=1 / 2, recall=1.0, f1=2 / 3),
        LabelScore(precision=None, recall=0.0, f1=0.0),
        LabelScore(None, None, None),
    ]


def test_micro_f1_is_over_all_decisions_and_macro_f1_over_the_labels_that_occur() -> None:
    micro, macro = micro_f1(TRUTH, SAID), macro_f1(TRUTH, SAID)
    assert micro is not None
    assert macro is not None
    assert micro.value == pytest.approx(2 * 3 / (5 + 4))
    assert macro.value == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert labels_left_out(TRUTH, SAID) == 1


def test_a_perfect_system_has_one_and_empty_sets_have_nothing_to_be_found() -> None:
    for f1 in (micro_f1, macro_f1):
        assert f1(TRUTH[:1], TRUTH[:1]) == set_metrics.Estimate(1.0, 1.0, 1.0)
        assert f1(held([set(), set()], LABELS), held([set(), set()], LABELS)) is None
        assert f1(held([], LABELS), held([], LABELS)) is None


@given(sets, sets)
@settings(max_examples=25, deadline=None)
def test_the_value_lies_in_its_interval_and_follows_from_the_labels(one: list[set[str]], two: list[set[str]]) -> None:
    truth, said = held(one, LABELS), held(two, LABELS)
    micro, macro = micro_f1(truth, said), macro_f1(truth, said)
    each = [score.f1 for score in label_scores(truth, said) if score.f1 is not None]
    assert len(each) == len(LABELS) - labels_left_out(truth, said)
    if micro is None or macro is None:
        assert not truth.any()
        assert not said.any()
        return
    assert macro.value == pytest.approx(np.mean(each))
    hits, count = (truth & said).sum(), truth.sum() + said.sum()
    assert micro.value == pytest.approx(2 * hits / count)
    for found in (micro, macro):
        assert 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize("f1", [micro_f1, macro_f1])
def test_the_interval_narrows_with_the_rows_and_holds_the_value(f1) -> None:  # type: ignore[no-untyped-def]
    few, many = f1(np.tile(TRUTH, (5, 1)), np.tile(SAID, (5, 1))), f1(np.tile(TRUTH, (80, 1)), np.tile(SAID, (80, 1)))
    assert few.low < few.value < few.high
    assert many.low < many.value < many.high
    assert many.high - many.low < (few.high - few.low) / 2
