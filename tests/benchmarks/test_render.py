"""What a reader sees."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest

from edgestill.benchmarks.measurement import Noise
from edgestill.benchmarks.render import html, markdown, terminal_table

ALL_RIGHT = ["yes", "no"] * 20
ALL_WRONG = ["no", "yes"] * 20


def test_html_is_well_formed_and_fetches_nothing(handmade):
    text = html(handmade().report())
    tree = ElementTree.fromstring(text)
    assert tree.tag == "html"
    names = {element.tag for element in tree.iter()}
    assert not names & {"script", "link", "img", "iframe", "object", "a"}
    assert not re.search(r"https?:|url\(|@import|src=|href=|\bon[a-z]+=", text)
    labels = [svg.get("aria-label") for svg in tree.iter("svg")]
    assert labels == [
        "accuracy % against bytes on disk (log)",
        "accuracy % against p50 latency (log)",
        "latency of a request (log) by run",
        "of these wrong, % against share of the rows answered, %",
    ]


def test_every_system_and_label_is_in_every_form(handmade):
    report = handmade().report()
    for text in (html(report), markdown(report)):
        for wanted in ("teacher", "floor", "student ONNX q4_0", "never", report.bundle_sha256["student"], "1.84"):
            assert wanted in text


def test_without_gold_nothing_is_called_accuracy(handmade):
    report = handmade(gold=None).report()
    for text in (markdown(report), html(report), terminal_table(report)):
        assert "accuracy" not in text.lower()
        assert "agreement" in text


def test_with_gold_accuracy_and_agreement_have_columns_of_their_own(handmade):
    head = next(line for line in markdown(handmade().report()).splitlines() if line.startswith("| system"))
    assert "accuracy %" in head
    assert "agreement with the teacher %" in head


def test_it_is_said_first_that_the_floor_wins(handmade):
    report = handmade(floor=ALL_RIGHT, artifact=ALL_WRONG).report()
    said = "The floor wins by 100.0 points [100.0, 100.0] over the student ONNX q4_0."
    assert markdown(report).split("\n\n")[1].startswith(f"**{said}")
    assert said in html(report)
    assert said in terminal_table(report)


def test_no_difference_is_not_called_a_win(handmade):
    report = handmade(artifact=ALL_RIGHT, floor=ALL_RIGHT).report()
    assert "No difference shown between the student ONNX q4_0 and the floor" in markdown(report)
    assert "beats" not in markdown(report)


def test_few_samples_show_no_p90_and_the_reason(handmade):
    text = markdown(handmade(latencies_ms=[2.0] * 10 + [None] * 30).report())
    row = next(line for line in text.splitlines() if line.startswith("| student ONNX q4_0"))
    assert "| 2.00 | - |" in row
    assert "No p90 is stated for the student ONNX q4_0: 10 timed requests, wanted 29." in text


def test_the_terminal_table_is_plain_and_narrow(handmade):
    text = terminal_table(handmade().report())
    assert max(map(len, text.splitlines())) <= 110
    assert "\x1b" not in text


def test_a_long_name_is_cut_before_the_table_grows_too_wide(handmade):
    made = handmade()
    wide = dataclasses.replace(made, measurement=dataclasses.replace(made.measurement, quantization="q4_0" * 30))
    table = terminal_table(wide.report()).split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= 110


def test_names_with_markup_stay_text(handmade):
    report = handmade(name="<b>a | b</b>", gold=["<i>|", "no"] * 20).report()
    assert ElementTree.fromstring(html(report)) is not None
    assert "<i>" not in html(report)
    assert "| <i>\\| |" in markdown(report)


def test_a_bundle_without_floor_and_base_is_compared_with_the_teacher(handmade):
    report = handmade(floor=None).report()
    assert [c.b for c in report.comparisons] == ["teacher"]
    assert markdown(report).split("\n\n")[1].startswith("**No difference shown")


def test_without_gold_and_opponents_there_is_still_a_report(handmade):
    report = handmade(floor=None, gold=None).report()
    assert "nothing to compare it with" in markdown(report)
    assert ElementTree.fromstring(html(report)) is not None
    assert terminal_table(report)


@pytest.mark.parametrize(
    "psi, said", [(None, "not known"), (3.0, "not contended"), (42.0, "read the times as upper bounds")]
)
def test_contention_is_stated(handmade, psi, said):
    made, noise = handmade(), Noise(psi, None, None, None)
    made = dataclasses.replace(made, measurement=dataclasses.replace(made.measurement, noise=noise))
    assert said in markdown(made.report())
    assert ("upper bounds" in terminal_table(made.report())) == (psi == 42.0)
