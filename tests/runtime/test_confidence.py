"""Confidence: what a temperature does to probabilities, and what it must leave alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.runtime.confidence import confidence, load_temperature
from edgestill.runtime.decode import log_softmax
from edgestill.runtime.errors import EdgestillError

LOGITS = st.lists(st.floats(-30, 30), min_size=2, max_size=8).map(np.array)
TEMPERATURES = st.floats(0.05, 20)


@given(LOGITS, TEMPERATURES)
def test_one_answer_gets_the_softmax_of_its_logits_over_the_temperature(logits, temperature):
    probabilities = np.exp(log_softmax(logits))
    for place in range(len(logits)):
        wanted = np.exp(log_softmax(logits / temperature))[place]
        assert confidence(probabilities, [place], False, temperature) == pytest.approx(wanted, abs=1e-9)


@given(LOGITS, TEMPERATURES, st.data())
def test_a_set_gets_the_sigmoid_of_its_least_certain_label_held_or_not(logits, temperature, data):
    logits = logits / 2  # 1 - p keeps its digits
    chosen = data.draw(st.lists(st.sampled_from(range(len(logits))), unique=True))
    signs = [1 if place in chosen else -1 for place in range(len(logits))]
    wanted = min(1 / (1 + np.exp(-sign * x / temperature)) for sign, x in zip(signs, logits, strict=True))
    assert confidence(1 / (1 + np.exp(-logits)), chosen, True, temperature) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_probabilities_of_exactly_nothing_and_all_stay_numbers(temperature):
    assert confidence(np.array([1.0, 0.0]), [0], False, temperature) == pytest.approx(1)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("saturated", [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
def test_a_saturated_label_is_as_sure_as_the_last_bit_of_a_float_allows(saturated, temperature):
    chosen = [place for place, p in enumerate(saturated) if p == 1]
    wanted = 1 / (1 + 2 ** (-53 / temperature))  # 37 nats, not the 690 of the smallest float
    assert confidence(np.array(saturated), chosen, True, temperature) == pytest.approx(wanted)


def test_a_temperature_of_one_changes_nothing_and_a_higher_one_makes_less_sure():
    probabilities = np.array([0.7, 0.2, 0.1])
    sure = [confidence(probabilities, [0], False, t) for t in (0.5, 1.0, 2.0, 20.0)]
    assert sure[1] == pytest.approx(0.7)
    assert sure == sorted(sure, reverse=True)
    assert sure[3] > 1 / 3


def test_a_bundle_without_the_file_has_no_temperature_and_a_torn_file_is_refused(tmp_path: Path):
    assert load_temperature(tmp_path, "onnx") is None
    (tmp_path / "calibration.json").write_text('{"schema": "edgestill-calibration/1"}', encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"calibration\.json"):
        load_temperature(tmp_path, "onnx")
