"""A report on sets of labels: what is called right, what each label's figures are, and what is not shown."""

import pytest

from edgestill.benchmarks.render import html, markdown, terminal_table
from edgestill.benchmarks.report import Report
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

# 40 rows of four kinds; the task's third label, never, is in none of them
GOLD = ["yes | no", "yes", "no", "(none)"] * 10
HALF = ["yes", "yes", "no", "no"] * 10  # right on yes and no alone


def report_on(handmade, **changes) -> Report:
    made = {"gold": GOLD, "teacher": HALF, "floor": HALF, "artifact": GOLD, "kind": "multilabel"}
    return handmade(**{**made, **changes}).report()


def system(report: Report, name: str):
    return next(s for s in report.systems if s.name == name)


def test_a_row_is_right_when_its_whole_set_is(handmade):
    report = report_on(handmade)
    floor, student = system(report, "floor"), system(report, "student ONNX q4_0")
    assert (floor.accuracy.value, floor.agreement.value) == (0.5, 1.0)
    assert (student.accuracy.value, student.agreement.value) == (1.0, 0.5)
    assert report.comparisons[0].only_a == 20
    assert student.micro_f1.value == student.macro_f1.value == 1.0


def test_f1_is_over_the_labels_by_hand(handmade):
    report = report_on(handmade)
    floor = system(report, "floor")
    # yes: 20 hits of 20 held, 20 said; no: 10 hits of 20 held, 20 said
    assert floor.micro_f1.value == pytest.approx(2 * 30 / (40 + 40))
    assert floor.macro_f1.value == pytest.approx((1 + 0.5) / 2)
    yes, no, never = report.sets.labels
    assert (yes.label, yes.n, no.n, never.n) == ("yes", 20, 20, 0)
    assert no.scores["floor"].precision == no.scores["floor"].recall == no.scores["floor"].f1 == 0.5
    assert never.scores["floor"].f1 is None
    assert report.sets.left_out == {"teacher": 1, "floor": 1, "student ONNX q4_0": 1}
    assert report.labels == ()


def test_the_empty_set_is_none_of_these_with_a_recall_of_its_own(handmade):
    none = report_on(handmade).none
    assert (none.label, none.n, none.n_other) == ("(none)", 10, 30)
    assert {name: found.value for name, found in none.recall.items()} == {
        "teacher": 0.0,
        "floor": 0.0,
        "student ONNX q4_0": 1.0,
    }
    assert none.false_alarms["student ONNX q4_0"].value == 0.0


def test_every_form_says_exact_match_and_micro_f1_and_never_accuracy(handmade):
    report = report_on(handmade)
    for text in (markdown(report), html(report), terminal_table(report)):
        assert "exact match %" in text
        assert "micro-F1 %" in text
        assert "accuracy" not in text.lower()
    for text in (markdown(report), html(report)):
        assert "Precision, recall and F1 by label" in text
        assert "None of these: (none)" in text
        assert "50.0, 50.0, 50.0" in text
        assert "-, -, -" in text
        assert "1 of 3 for teacher, floor and student ONNX q4_0." in text
    assert max(map(len, terminal_table(report).splitlines())) <= 110


def test_without_gold_it_is_called_agreement(handmade):
    report = report_on(handmade, gold=None)
    for text in (markdown(report), html(report), terminal_table(report)):
        assert "exact agreement" in text
        assert "exact match" not in text.lower()
    assert system(report, "teacher").micro_f1 is None
    assert "teacher" not in report.sets.left_out


def test_a_report_of_one_label_a_row_has_none_of_this(handmade):
    report = handmade().report()
    assert (report.task_kind, report.sets, system(report, "floor").micro_f1) == ("classify", None, None)
    assert "Recall by label" in markdown(report)
    assert "micro-F1" not in markdown(report)


def test_a_report_is_read_back_as_it_was_written(handmade, tmp_path):
    report = report_on(handmade)
    manifest.save(tmp_path / "report.json", report)
    assert manifest.load(Report, tmp_path / "report.json") == report


def test_bundles_of_sets_and_of_one_label_do_not_meet(handmade, joint):
    one, other = handmade(student="a"), handmade(student="b", kind="multilabel")
    with pytest.raises(EdgestillError, match="has another kind of task than"):
        joint([one, other])
