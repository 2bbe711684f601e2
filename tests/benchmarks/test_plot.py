"""Points and labels keep out of each other's way."""

import itertools
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from edgestill.benchmarks.plot import LINE_HEIGHT, RIGHT, Box, Point, log_ticks, scatter, text_width, y_step
from edgestill.runtime.metrics import Estimate

NAMES = ("base *", "floor *", "student torch *", "student ONNX q4_0", "student GGUF q4_0")
SHARES = st.floats(0, 1).map(lambda v: Estimate(v, max(0.0, v - 0.05), min(1.0, v + 0.05)))


def label_boxes(svg):
    for text in ElementTree.fromstring(svg).iter("text"):
        if (text.get("class") or "").split()[0] in ("name", "teacher"):
            width, x, top = text_width(text.text), float(text.get("x")), float(text.get("y")) - 12
            left = x - width if text.get("text-anchor") == "end" else x
            yield Box(left + 0.2, top + 0.2, left + width - 0.2, top + LINE_HEIGHT - 0.2)


@given(st.lists(st.tuples(st.floats(1e-2, 1e4), SHARES), min_size=1, max_size=5), st.none() | SHARES)
def test_labels_of_a_report_do_not_overlap(places, level):
    points = [Point(name, "base", x, y) for name, (x, y) in zip(NAMES, places, strict=False)]
    line = None if level is None else Point("teacher 94.0 %", "teacher", 1.0, level)
    boxes = list(label_boxes(scatter(points, line, "x", "y", str)))
    assert len(boxes) == len(points) + (line is not None)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.left >= 0 and box.right <= RIGHT + 1 for box in boxes)


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
