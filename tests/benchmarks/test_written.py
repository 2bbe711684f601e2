"""A report on written answers and on choices: what is told of them, and what is left out because it means nothing."""

import dataclasses
import json

import pytest

from edgestill.benchmarks.folder import read_folder
from edgestill.benchmarks.render import html, markdown, terminal_table
from edgestill.benchmarks.report import Report
from edgestill.benchmarks.report_schema import SCHEMA_FILE

# 40 rows: equal, half of the tokens, another answer, none
GOLD = ["blue sky", "blue sky", "blue sky", "blue sky"] * 10
SAID = ["blue sky", "blue sea", "grass", ""] * 10
PERFECT = GOLD
GENERATE = {"kind": "generate", "labels": (), "answer": "text", "match": "f1"}


def report_on(handmade, **changes) -> Report:
    made = {"gold": GOLD, "teacher": PERFECT, "floor": None, "torch": SAID, "artifact": SAID, **GENERATE}
    return handmade(**{**made, **changes}).report()


def system(report: Report, name: str):
    return next(s for s in report.systems if s.name == name)


def test_accuracy_is_of_equal_answers_and_f1_of_their_tokens(handmade):
    report = report_on(handmade)
    assert system(report, "student ONNX q4_0").accuracy.value == 0.25
    f1 = report.written.token_f1
    assert f1["student ONNX q4_0"].value == f1["student torch"].value == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert f1["student ONNX q4_0"].low < 0.375 < f1["student ONNX q4_0"].high
    assert f1["teacher"].value == 1.0
    assert report.written.unanswered["student ONNX q4_0"].value == 0.25
    assert report.written.unanswered["teacher"].value == 0.0


def test_numbers_have_no_token_f1(handmade):
    report = report_on(handmade, match="number")
    assert set(report.written.token_f1.values()) == {None}
    assert "token F1" not in markdown(report)


def test_nothing_is_told_by_label_where_there_are_none(handmade):
    report = report_on(handmade)
    assert (report.labels, report.confusions, report.sets, report.none) == ((), {}, None, None)
    assert {s.macro_f1 for s in report.systems} == {None}
    for text in (markdown(report), html(report)):
        assert "Written answers" in text
        assert "token F1 %" in text
        assert "37.5 [" in text
        assert "end of the written answer" in text
        for absent in ("Recall by label", "taken for what", "macro-F1", "gold labels"):
            assert absent not in text
    assert "accuracy %" in terminal_table(report)


def test_letters_of_choices_are_no_classes(handmade):
    report = handmade(choices="options").report()
    assert (report.labels, report.confusions, report.written) == ((), {}, None)
    for text in (markdown(report), html(report)):
        for absent in ("Recall by label", "taken for what", "macro-F1", "Written answers"):
            assert absent not in text
        assert "its own choices" in text


def test_the_tokens_of_a_row_are_those_of_the_first_round(handmade):
    made = handmade(gold=GOLD, teacher=PERFECT, floor=None, artifact=SAID, **GENERATE)
    first = [dataclasses.replace(r, tokens_written=4 + i % 2) for i, r in enumerate(made.measurement.requests)]
    later = [dataclasses.replace(r, round=1, tokens_written=100) for r in first]
    changed = dataclasses.replace(made, measurement=dataclasses.replace(made.measurement, requests=(*first, *later)))
    assert changed.report().written.tokens_a_row == {"teacher": None, "student ONNX q4_0": 4.5}


def test_a_report_on_written_answers_is_kept_whole(handmade, written):
    made = handmade(gold=GOLD, teacher=PERFECT, floor=None, artifact=SAID, **GENERATE)
    kept = read_folder(written(made, "report"))
    assert kept.report.match == kept.reference.match == "f1"
    assert kept.report.written.unanswered["student ONNX q4_0"].value == 0.25


def test_reports_made_before_are_valid_and_read_without_the_new_keys(handmade, written):
    import jsonschema

    folder = written(handmade(), "report")
    data = json.loads((folder / "report.json").read_text())
    for key in ("match", "has_choices", "written"):
        del data[key]
    jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text())).validate(data)
    (folder / "report.json").write_text(json.dumps(data))
    assert read_folder(folder).report.match is None
