"""Points and labels keep out of each other's way."""

import itertools
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.benchmarks.labels import LINE_HEIGHT, MAX_LETTERS, Box, short_name, text_width
from edgestill.benchmarks.plot import RIGHT, Point, log_ticks, scatter, y_step
from edgestill.runtime.metrics import Estimate

NAMES = ("base *", "floor *", "student torch *", "student ONNX q4_0", "student GGUF q4_0")
STUDENTS = ("minilm", "SmolLM2-135M-Instruct-15-layers", "distilbert-base-multilingual-cased")
SEVERAL = ("floor *", *(f"{student} {engine} q8_0" for student in STUDENTS for engine in ("ONNX", "GGUF")))
SHARES = st.floats(0, 1).map(lambda v: Estimate(v, max(0.0, v - 0.05), min(1.0, v + 0.05)))


def label_boxes(svg):
    for text in ElementTree.fromstring(svg).iter("text"):
        if (text.get("class") or "").split()[0] in ("name", "teacher"):
            width, x, top = text_width(text.text), float(text.get("x")), float(text.get("y")) - 12
            left = x - {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor", "start")] * width
            yield Box(left + 0.2, top + 0.2, left + width - 0.2, top + LINE_HEIGHT - 0.2)


@pytest.mark.parametrize("names", [NAMES, SEVERAL])
@given(places=st.lists(st.tuples(st.floats(1e-2, 1e4), SHARES), min_size=1, max_size=7), level=st.none() | SHARES)
@settings(deadline=None)
def test_labels_of_a_report_do_not_overlap(names, places, level):
    points = [Point(name, "hue0", x, y) for name, (x, y) in zip(names, places, strict=False)]
    line = None if level is None else Point("teacher 94.0 %", "teacher", 1.0, level)
    boxes = list(label_boxes(scatter(points, line, "x", "y", str)))
    assert len(boxes) == len(points) + (line is not None)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.left >= 0 and box.right <= RIGHT + 1 for box in boxes)


@given(st.integers(1, 60), st.sampled_from(["", " torch *", " ONNX q4_0", " ONNX " + "q4_0" * 20]))
def test_a_long_name_keeps_both_ends(letters, rest):
    name = "".join(chr(ord("a") + i % 26) for i in range(letters)) + rest
    short = short_name(name)
    assert len(short) <= MAX_LETTERS
    if len(name) <= MAX_LETTERS:
        assert short == name
    else:
        start, end = short.split("…")
        assert name.startswith(start) and name.endswith(end) and start and end


@given(st.floats(1e-3, 1e9), st.floats(2.5, 1e6))
def test_ticks_are_few_inside_and_rising(low, factor):
    ticks = log_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 6
    assert all(low <= tick <= low * factor for tick in ticks)
    assert ticks == sorted(set(ticks))


@given(st.floats(0, 1))
def test_the_y_axis_has_few_ticks(extent):
    assert extent / y_step(extent) <= 8


def test_names_are_escaped():
    svg = scatter([Point("a < b", "base", 1.0, Estimate(0.5, 0.4, 0.6))], None, "x & y", "z", str)
    assert ElementTree.fromstring(svg).get("aria-label") == "z against x & y"
