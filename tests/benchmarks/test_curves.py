"""Axes, lines and boxes of the page."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.benchmarks.page.charts import bytes_tick, count_tick, ms_tick
from edgestill.benchmarks.page.curves import Axis, Series, Spread, boxes, curves, tick_step
from edgestill.benchmarks.plot import RIGHT, WIDTH


def axis(low, high, log=False):
    return Axis("x", low, high, log, str, 0.0, 100.0)


@given(st.floats(1e-6, 1e9), st.floats(1.5, 1e4), st.booleans())
def test_ticks_lie_on_the_axis_in_order_and_there_are_neither_few_nor_many(low, factor, log):
    found = axis(low, low * factor, log)
    places = [found.place(tick) for tick in found.ticks()]
    assert places == sorted(places)
    assert 2 <= len(places) <= 8
    assert all(-1e-3 <= place <= 100 + 1e-3 for place in places)
    assert (found.place(low), found.place(low * factor)) == (0.0, pytest.approx(100.0))


@given(st.floats(1e-6, 1e9))
def test_linear_ticks_are_round(extent):
    step = tick_step(extent)
    assert 2 <= extent / step <= 6.001
    assert f"{step:.6e}"[0] in "125"


def test_curves_draw_every_line_with_its_name_and_the_mark():
    lines = [Series(f"run <{i}>", f"hue{i}", ((0.1, 0.0), (1.0, 0.5))) for i in range(3)]
    x = Axis("answered", 0.0, 1.0, False, str, 40.0, RIGHT)
    tree = ElementTree.fromstring(curves(lines, x, Axis("wrong", 0.0, 0.5, False, str, 200.0, 10.0), (0.5, "half")))
    assert len(list(tree.iter("polyline"))) == 3
    texts = [element.text for element in tree.iter("text")]
    assert {"run <0>", "run <1>", "run <2>", "half"} <= set(texts)
    ends = [line.get("points").split()[-1] for line in tree.iter("polyline")]
    assert ends == [f"{RIGHT:.1f},10.0"] * 3


def test_boxes_leave_out_the_percentiles_that_are_unknown():
    few = Spread("few", "hue0", None, None, 20.0, None, None, None)
    many = Spread("many", "hue1", 10.0, 15.0, 20.0, 30.0, 40.0, 90.0)
    tree = ElementTree.fromstring(boxes([few, many], "latency", ms_tick))
    groups = list(tree.iter("g"))
    assert [sorted(child.tag for child in group) for group in groups] == [["line"], ["circle", "line", "line", "rect"]]
    assert all(0 <= float(circle.get("cx")) <= WIDTH for circle in tree.iter("circle"))


def test_ticks_are_said_in_units():
    assert [bytes_tick(9e7), bytes_tick(5e8), bytes_tick(2e9), bytes_tick(10)] == ["90 MB", "500 MB", "2 GB", "10 B"]
    assert [ms_tick(20), ms_tick(2000), count_tick(1e4), count_tick(0.1)] == ["20 ms", "2 s", "10k", "0.1"]
