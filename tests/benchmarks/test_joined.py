"""Reports of several machines and students as one, from their folders alone."""

import dataclasses
import json
import shutil
from xml.etree import ElementTree

import jsonschema
import pytest

from edgestill.benchmarks.folder import read_folder
from edgestill.benchmarks.joined import join, join_reports
from edgestill.benchmarks.measurement import Machine
from edgestill.benchmarks.render import html, markdown, terminal_table
from edgestill.benchmarks.report import Origin, Report, assemble
from edgestill.benchmarks.report_schema import SCHEMA_FILE, report_schema
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

GOLD = ["yes", "no"] * 20
PI = Machine("pi5", "ssh")
ARM = {"cpu_model": "Cortex-A76", "machine": "aarch64", "isa": ("asimddp",)}


def wrong_on(*rows):
    return [{"yes": "no", "no": "yes"}[label] if i in rows else label for i, label in enumerate(GOLD)]


def answering(made, labels):
    """The measurement's requests with other labels."""
    pairs = zip(made.measurement.requests, labels, strict=True)
    return tuple(dataclasses.replace(request, label=label) for request, label in pairs)


@pytest.fixture
def devices(handmade, written):
    """One bundle on two machines, which part on rows 7 and 8; the bundle is gone."""
    made = handmade(torch=GOLD, artifact=wrong_on(0), base=wrong_on(*range(30)))
    folders = [
        written(made, "here"),
        written(made, "there", ARM, machine=PI, requests=answering(made, wrong_on(0, 7, 8))),
    ]
    shutil.rmtree(made.folder)
    return folders


def test_a_folder_holds_enough_to_compute_its_report_again(devices):
    kept = read_folder(devices[0])
    assert assemble(origin_of(kept.report), kept.reference, kept.measurements) == kept.report


def origin_of(report):
    names = {f.name for f in dataclasses.fields(Origin)} - {"build_versions"}
    return Origin(build_versions=report.conditions.build_versions, **{name: getattr(report, name) for name in names})


def test_machines_stand_beside_each_other_with_one_teacher_floor_and_torch(devices, tmp_path):
    report = join_reports([devices[0], devices[1] / "report.json"], tmp_path / "out")
    assert [s.name for s in report.systems] == [
        "teacher",
        "base",
        "floor",
        "student torch",
        "student ONNX q4_0 @ local",
        "student ONNX q4_0 @ pi5",
    ]
    assert [site.machine.name for site in report.machines] == ["local", "pi5"]
    assert report.choice is None
    assert manifest.load(Report, tmp_path / "out" / "report.json") == report


def test_the_flips_between_machines_are_counted_by_row(devices):
    report, _, _ = join([read_folder(folder) for folder in devices])
    (between,) = report.apart
    assert (between.a, between.b) == ("student ONNX q4_0 @ local", "student ONNX q4_0 @ pi5")
    assert [(f.row_id, f.before, f.after) for f in between.flips] == [("row-7", "no", "yes"), ("row-8", "yes", "no")]
    assert between.max_probability_difference == 0.0


def test_the_joint_page_is_whole_and_names_both_machines(devices, tmp_path):
    join_reports(devices, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert ElementTree.fromstring(text).tag == "html"
    for wanted in ("Cortex-A76", "asimddp", "student ONNX q4_0 @ pi5", "2 of 40"):
        assert wanted in text
        assert wanted in (tmp_path / "out" / "report.md").read_text()


def test_a_bundle_that_answers_alike_on_two_machines_has_one_line_and_both_names(handmade, written, tmp_path):
    made = handmade(torch=GOLD, artifact=wrong_on(0), base=wrong_on(*range(30)))
    folders = [written(made, "here"), written(made, "there", ARM, machine=PI)]
    join_reports(folders, tmp_path / "out")
    tree = ElementTree.parse(tmp_path / "out" / "report.html")
    assert "Names of one colour share a line" in (tmp_path / "out" / "report.html").read_text()
    (svg,) = (e for e in tree.iter("svg") if "answered" in e.get("aria-label"))
    first, second = (e for e in svg if e.tag == "polyline")
    assert [e.get(key) for e in (first, second) for key in ("points", "class")] == [
        first.get("points"),
        first.get("class"),
    ] * 2
    assert [e.text for e in svg if "name" in e.get("class", "")] == [
        "student ONNX q4_0 @ local",
        "student ONNX q4_0 @ pi5",
    ]


def test_a_joint_report_can_be_joined_again(devices, handmade, written, tmp_path):
    join_reports(devices, tmp_path / "both")
    third = dict(ARM, cpu_model="Cortex-A72")
    again = written(handmade(torch=GOLD, base=wrong_on(*range(30))), "third", third, machine=Machine("pi4", "ssh"))
    found = join_reports([tmp_path / "both", again], tmp_path / "all")
    assert [site.machine.name for site in found.machines] == ["local", "pi5", "pi4"]


def test_machines_called_alike_get_numbers_and_the_same_machine_does_not(handmade, written):
    one, other = handmade(name="a"), None
    first = written(one, "first")
    other = handmade(name="b", artifact=GOLD)
    second, third = written(other, "second"), written(other, "third", ARM)
    report, _, _ = join([read_folder(first), read_folder(second)])
    assert [site.machine.name for site in report.machines] == ["local"]
    assert report.students == ("student", "b"), "two bundles of students that are called alike"
    report, _, _ = join([read_folder(first), read_folder(third)])
    assert [site.machine.name for site in report.machines] == ["local", "local #2"]


def test_one_artifact_twice_on_one_machine_is_refused(handmade, written):
    made = handmade()
    kept = [read_folder(written(made, name)) for name in ("monday", "tuesday")]
    with pytest.raises(EdgestillError, match=r"measured the onnx artifact of student on local - .*edgestill compare"):
        join(kept)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"gold": wrong_on(7)}, "is of test rows [0-9a-f]{12}, wanted those of .*report.json: [0-9a-f]{12}"),
        ({"teacher": wrong_on(0, 1, 5)}, "has 1 other answers of the teacher"),
        ({"none": "never"}, "is of other labels"),
    ],
)
def test_reports_of_other_rows_are_refused_before_anything_is_written(handmade, written, tmp_path, other, said):
    folders = [written(handmade(), "one"), written(handmade(**other), "two")]
    with pytest.raises(EdgestillError, match=said):
        join_reports(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_lacks_rows_is_refused(devices):
    path = devices[0] / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(EdgestillError, match="holds 39 rows and 1 runs, its report is of 40 and 1"):
        read_folder(devices[0])
    path.unlink()
    with pytest.raises(EdgestillError, match=r"no file .*rows.jsonl"):
        read_folder(devices[0])


def test_one_report_or_a_full_folder_is_bad_usage(devices, tmp_path):
    with pytest.raises(UsageError, match="found 1 report, wanted two"):
        join_reports(devices[:1], tmp_path / "out")
    with pytest.raises(UsageError, match="not an empty folder"):
        join_reports(devices, devices[0])


def test_the_shipped_schema_is_that_of_the_dataclasses():
    assert json.loads(SCHEMA_FILE.read_text()) == report_schema()


def test_reports_are_valid_by_the_shipped_schema_and_broken_ones_are_not(devices, handmade, tmp_path):
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    join_reports(devices, tmp_path / "out")
    sets = handmade(gold=["yes | no", "yes", "no", "(none)"] * 10, kind="multilabel", none=None).report()
    manifest.save(tmp_path / "sets.json", sets)
    for path in (devices[0] / "report.json", tmp_path / "out" / "report.json", tmp_path / "sets.json"):
        assert [e.message for e in validator.iter_errors(json.loads(path.read_text()))] == []
    broken = json.loads((devices[0] / "report.json").read_text())
    broken["runs"][0]["latency_ms"]["p50"] = "fast"
    del broken["cost"]
    assert len(list(validator.iter_errors(broken))) == 2


def test_what_no_machine_could_run_is_said_with_its_machine(handmade, written, tmp_path):
    made, why = handmade(), "gguf: there is no wheel of llama-cpp-python"
    folders = [written(made, "here"), written(made, "there", ARM, machine=PI, left_out=[why])]
    report = join_reports(folders, tmp_path / "out")
    assert report.left_out == (f"student on pi5: {why}",)
    for text in (terminal_table(report), html(report), markdown(report)):
        assert "Left out: student on pi5: gguf: there is no" in " ".join(text.split())


def test_a_lost_answer_is_missed_and_not_left_out(handmade, written):
    made = handmade()
    with pytest.raises(EdgestillError, match="no answer for 4 of 40 test rows"):
        written(made, "lost", requests=made.measurement.requests[4:])


def test_a_machine_that_was_asked_some_rows_is_judged_by_those_alone(handmade, written, tmp_path):
    made = handmade(teacher=wrong_on(1, 9), torch=GOLD, artifact=wrong_on(0, 1, 2, 3))
    some = tuple(request for i, request in enumerate(made.measurement.requests) if i % 2)
    emulated = Machine("emulated:cortex-a72", "emulated", True, "qemu", "20 of 40 test rows")
    few, whole = written(made, "few", ARM, machine=emulated, requests=some), written(made, "whole")
    kept = read_folder(few)
    assert kept.reference.row_ids == tuple(f"row-{i}" for i in range(1, 40, 2))
    shares = {system.kind: system.accuracy.value for system in kept.report.systems}
    assert shares == pytest.approx({"teacher": 0.9, "floor": 0.5, "student": 1.0, "artifact": 0.9})
    assert kept.report.choice is None
    assert kept.reference.dataset_sha256 != read_folder(whole).reference.dataset_sha256
    with pytest.raises(EdgestillError, match="the same rows=N"):
        join_reports([few, whole], tmp_path / "out")
