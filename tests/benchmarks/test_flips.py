"""Rows that an artifact answers otherwise, what is confused with what, how sure the answers are, what they cost."""

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.benchmarks.cost import cost_of
from edgestill.benchmarks.flips import SHOWN_LETTERS, shortened
from edgestill.benchmarks.measurement import INVALID, Loads, Machine
from edgestill.benchmarks.page.cost_words import cost_sentences
from edgestill.benchmarks.render import html, markdown, terminal_table
from edgestill.benchmarks.runs import distribution, thinned

GOLD = ["yes", "no"] * 20


def wrong_on(*rows):
    return [{"yes": "no", "no": "yes"}[label] if i in rows else label for i, label in enumerate(GOLD)]


def changed(made, **changes):
    return dataclasses.replace(made, measurement=dataclasses.replace(made.measurement, **changes))


def test_flips_are_the_rows_that_torch_answers_otherwise(handmade):
    (run,) = handmade(torch=wrong_on(0, 5), artifact=wrong_on(0, 7)).report().runs
    assert run.flips_against == "student torch"
    assert [(f.row_id, f.text, f.gold, f.teacher, f.before, f.after) for f in run.flips] == [
        ("row-5", "row-5", "no", "no", "yes", "no"),
        ("row-7", "row-7", "no", "no", "no", "yes"),
    ]


def test_without_answers_of_torch_flips_are_unknown_and_not_none_at_all(handmade):
    report = handmade().report()
    assert (report.runs[0].flips, report.runs[0].flips_against) == (None, None)
    row = next(line for line in markdown(report).splitlines() if "0 of 32" in line)
    assert row.endswith("| - |")


def test_every_form_lists_the_flipped_rows(handmade):
    report = handmade(torch=GOLD, artifact=wrong_on(3)).report()
    for text in (html(report), markdown(report)):
        assert "student ONNX q4_0, otherwise than student torch: 1 row" in text
        assert "1 of 40" in text
        assert "row-3" in text


def test_the_counts_of_a_confusion_are_those_of_the_rows(handmade):
    report = handmade(artifact=wrong_on(0, 2, 3)).report()
    cells = {(c.truth, c.said): c.n for c in report.confusions["student ONNX q4_0"]}
    assert cells == {("yes", "yes"): 18, ("yes", "no"): 2, ("no", "no"): 19, ("no", "yes"): 1}
    assert "| student ONNX q4_0 | yes | no | 2 |" in markdown(report)


def test_calibration_is_of_the_rows_whose_confidence_is_known(handmade):
    made = handmade(artifact=wrong_on(*range(10)))
    requests = [
        dataclasses.replace(r, confidence=None if i >= 20 else 0.9 if i >= 10 else 0.3)
        for i, r in enumerate(made.measurement.requests)
    ]
    (run,) = changed(made, requests=tuple(requests)).report().runs
    # ten right at 0.9 and ten wrong at 0.3: off by 0.1 and by 0.3
    assert run.calibration.n == 20
    assert run.calibration.error == pytest.approx(0.2)
    assert (run.calibration.coverage, run.calibration.risk) == ((0.5, 1.0), (0.0, 0.5))
    assert "| student ONNX q4_0 | 20 | 20.0 | 0.0 % | 50.0 % | 50.0 % |" in markdown(
        changed(made, requests=tuple(requests)).report()
    )


def test_without_confidence_nothing_is_said_of_calibration(handmade):
    made = handmade()
    requests = tuple(dataclasses.replace(r, confidence=None) for r in made.measurement.requests)
    report = changed(made, requests=requests).report()
    assert report.runs[0].calibration is None
    assert "Does it know" not in html(report) + markdown(report)


def test_an_emulated_machine_says_nothing_of_speed_in_any_form(handmade):
    made = handmade(latencies_ms=[None] * 40)
    machine = Machine("a72", "emulated", True, "qemu-aarch64 7.2.19, cortex-a72")
    report = changed(made, machine=machine, loads=Loads(None, (), None, (), None)).report()
    system = report.systems[-1]
    assert (system.latency_p50_ms, system.load_s, system.import_s) == (None, None, None)
    assert system.latency_reason == "an emulated machine says nothing of speed"
    text = markdown(report)
    assert "VALID, answers only" in text
    assert "Nothing was timed" in text
    assert "Loading was not timed" in text


def test_an_invalid_run_is_marked_wherever_its_times_are(handmade):
    report = changed(handmade(), validity=INVALID, reasons=("the machine was throttled",)).report()
    for text in (html(report), markdown(report), terminal_table(report)):
        assert "student ONNX q4_0 †" in text
        assert "INVALID by the clock: student ONNX q4_0 (the machine was throttled)" in text
    for title in ("Systems", "Loading", "Speed", "Memory"):
        section = markdown(report).partition(f"# {title}\n")[2].partition("\n##")[0]
        assert "student ONNX q4_0 †" in section, title
    assert "p50 latency †" in html(report)
    assert "†" not in html(handmade().report())


@pytest.mark.parametrize("count", [0, 4, 5, 10, 11, 28, 29, 298, 299, 400])
def test_percentiles_are_told_in_order_and_only_from_enough_samples(count):
    samples = [random.Random(i).lognormvariate(3, 1) for i in range(count)]
    found = distribution(samples)
    told = [found.p10, found.p25, found.p50, found.p75, found.p90, found.p99]
    needed = [29, 11, 5, 11, 29, 299]
    assert [p is not None for p in told] == [len(samples) >= n for n in needed]
    known = [p for p in told if p is not None]
    assert known == sorted(known)
    assert found.n == len(samples)


@given(st.integers(1, 5000))
def test_a_thinned_curve_keeps_its_ends(count):
    kept = thinned(count)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert kept == sorted(set(kept))
    assert len(kept) <= 60


def test_break_even_is_the_first_request_that_is_not_dearer():
    cost = cost_of({"usd_per_1000_requests": 0.06, "recorded_usd": "0.115", "price_usd_per_mtok": None})
    assert cost.break_even_requests == 1917
    assert (cost.break_even_requests - 1) * 0.06 / 1000 < 0.115 <= cost.break_even_requests * 0.06 / 1000


@pytest.mark.parametrize("unknown", [None, "None"])
def test_an_unknown_price_gives_no_break_even_and_says_so(handmade, unknown):
    for teacher in (
        {"usd_per_1000_requests": unknown, "recorded_usd": "2"},
        {"usd_per_1000_requests": 1.0, "recorded_usd": unknown},
    ):
        assert cost_of(teacher).break_even_requests is None
    report = dataclasses.replace(handmade().report(), cost=cost_of({}))
    assert "price is not known: no break-even" in cost_sentences(report)[0]
    assert "US dollars" not in html(report)


def test_a_known_price_draws_where_it_is_even(handmade):
    cost = cost_of({"usd_per_1000_requests": 2.0, "recorded_usd": "5", "price_usd_per_mtok": {"input": "0.15"}})
    report = dataclasses.replace(handmade().report(), cost=cost)
    assert "even at 2,500" in html(report)
    assert "price of 2,500 requests" in markdown(report)


def test_a_long_text_is_cut_to_one_line():
    assert shortened("a\n  b") == "a b"
    assert len(shortened("x" * 500)) == SHOWN_LETTERS
