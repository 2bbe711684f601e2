"""The report's numbers against numbers worked out by hand."""

import json

import pytest

from edgestill.benchmarks.report import Report
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

GOLD = ["yes", "no"] * 20


def system(report, name):
    return next(s for s in report.systems if s.name == name)


def test_accuracy_and_agreement_are_counted_against_gold_and_teacher(handmade):
    report = handmade().report()
    student = system(report, "student ONNX q4_0")
    # 36 of 40 right; Wilson's interval for 36/40 from the printed formula with z = 1.96
    assert student.accuracy.value == 0.9
    assert student.accuracy.low == pytest.approx(0.7695, abs=1e-4)
    assert student.accuracy.high == pytest.approx(0.9604, abs=1e-4)
    # the teacher errs on rows 0 and 1, the student on 0 to 3: they part on rows 2 and 3
    assert student.agreement.value == 38 / 40
    assert system(report, "teacher").agreement is None


def test_macro_f1_is_the_mean_over_labels(handmade):
    # the student errs on rows 0 and 2 (yes) and 1 and 3 (no): each label has 18 hits of 20, precision and recall 0.9
    assert system(handmade().report(), "student ONNX q4_0").macro_f1.value == pytest.approx(0.9)


def test_percentiles_are_null_with_a_reason_when_there_are_few_samples(handmade):
    few = system(handmade(latencies_ms=[1.0] * 28 + [None] * 12).report(), "student ONNX q4_0")
    assert (few.latency_p50_ms, few.latency_p90_ms, few.latency_samples) == (1.0, None, 28)
    assert "28 timed requests, wanted 29" in few.latency_reason


def test_29_samples_are_enough_for_p90(handmade):
    enough = system(handmade(latencies_ms=[float(i) for i in range(29)] + [None] * 11).report(), "student ONNX q4_0")
    assert enough.latency_p50_ms == 14.0
    assert enough.latency_p90_ms == pytest.approx(25.2)
    assert enough.latency_reason is None


def test_nobody_waited_for_a_recorded_teacher(handmade):
    teacher = system(handmade().report(), "teacher")
    assert teacher.latency_p50_ms is None
    assert "recorded" in teacher.latency_reason


def test_only_the_teacher_costs_and_energy_is_not_measured(handmade):
    report = handmade().report()
    assert [s.api_usd_per_1000_requests for s in report.systems] == [1.84, 0.0, 0.0]
    assert {s.energy_j_per_request for s in report.systems} == {None}


def test_the_peak_of_a_system_is_the_largest_of_its_lines(handmade):
    assert system(handmade().report(), "floor").peak_rss_bytes == 1039


def test_without_gold_everything_is_judged_by_the_teacher(handmade):
    report = handmade(gold=None).report()
    assert report.judged_by == "teacher"
    assert {s.accuracy for s in report.systems} == {None}
    assert system(report, "student ONNX q4_0").agreement.value == 38 / 40
    assert system(report, "teacher").macro_f1 is None
    assert [c.b for c in report.comparisons] == ["floor"], "against itself as the judge the teacher is always right"


def test_recall_counts_the_rows_of_each_label(handmade):
    lines = {line.label: line for line in handmade(artifact=["yes"] * 40).report().labels}
    assert list(lines) == ["yes", "no", "never"]
    assert (lines["yes"].n, lines["no"].n, lines["never"].n) == (20, 20, 0)
    assert lines["yes"].recall["student ONNX q4_0"].value == 1.0
    assert lines["no"].recall["student ONNX q4_0"].value == 0.0
    assert lines["no"].recall["teacher"].value == 19 / 20
    assert lines["never"].recall["student ONNX q4_0"] is None


def test_report_json_starts_with_its_schema_and_reads_back_equal(handmade, tmp_path):
    report = handmade().report()
    manifest.save(tmp_path / "report.json", report)
    text = (tmp_path / "report.json").read_text()
    assert next(iter(json.loads(text))) == "schema"
    assert '"edge-report/3"' in text
    assert manifest.load(Report, tmp_path / "report.json") == report


def test_the_chain_names_bundle_and_rows(handmade):
    made = handmade()
    report = made.report()
    assert report.bundle_sha256 == {"student": manifest.sha256_file(made.folder / "bundle.json")}
    assert report.dataset_sha256 == manifest.sha256_file(made.folder / "reference" / "test.jsonl")


def test_waiting_that_the_machine_does_not_tell_is_null(handmade):
    conditions = handmade().report().conditions
    assert (conditions.psi_cpu_some_avg10, conditions.contended) == (None, None)


def test_gold_on_some_rows_only_is_refused(handmade):
    with pytest.raises(EdgestillError, match="39 of 40 test rows have gold"):
        handmade(gold=[*GOLD[:39], None]).report()


def test_a_teacher_that_lacks_a_row_is_refused(handmade):
    made = handmade()
    path = made.folder / "reference" / "teacher.jsonl"
    manifest.write_jsonl(path, list(manifest.read_jsonl(path))[1:])
    with pytest.raises(EdgestillError, match="no answer for 1 of 40 test rows, such as row-0"):
        made.report()
