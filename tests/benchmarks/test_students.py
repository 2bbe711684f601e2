"""One report over several students, and the label for none of these."""

import dataclasses
import json
from xml.etree import ElementTree

import pytest

from edgestill.benchmarks.bench import run_bench
from edgestill.benchmarks.measure import inputs_sha256
from edgestill.benchmarks.render import html, markdown, terminal_table
from edgestill.benchmarks.report import Report
from edgestill.benchmarks.samples import write_measurement
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

GOLD = ["yes", "no"] * 20
FAST, SLOW = [1.0] * 40, [9.0] * 40


def quiet(stage, done, total):
    del stage, done, total


def wrong_on(*rows):
    return [{"yes": "no", "no": "yes"}[label] if i in rows else label for i, label in enumerate(GOLD)]


@pytest.fixture
def two(handmade):
    """A fast student with two more mistakes than a slow one that makes none, each with its base and torch."""
    return [
        handmade(student="minilm", artifact=wrong_on(0, 1), latencies_ms=FAST, base=["yes"] * 40, torch=GOLD),
        handmade(student="smollm2", artifact=GOLD, latencies_ms=SLOW, base=["no"] * 40, torch=wrong_on(3)),
    ]


def keep(made, out, *names):
    """Measurements as an interrupted run leaves them."""
    for one, name in zip(made, names, strict=True):
        found = dataclasses.replace(one.measurement, inputs_sha256=inputs_sha256(one.folder))
        write_measurement(out / name, found)


def test_teacher_and_floor_stand_once_and_everything_else_bears_its_students_name(two, joint):
    assert [s.name for s in joint(two).systems] == [
        "teacher",
        "minilm base",
        "smollm2 base",
        "floor",
        "minilm torch",
        "smollm2 torch",
        "minilm ONNX q4_0",
        "smollm2 ONNX q4_0",
    ]


def test_an_artifact_meets_what_is_its_own_and_of_the_others_only_the_best(two, joint):
    pairs = [(c.a, c.b) for c in joint(two).comparisons]
    fast, slow = "minilm ONNX q4_0", "smollm2 ONNX q4_0"
    own = [(fast, b) for b in ("floor", "teacher", "minilm base", "minilm torch", slow)]
    assert pairs == [*own, *((slow, b) for b in ("floor", "teacher", "smollm2 base", "smollm2 torch"))]


def test_each_student_is_compared_with_its_own_base(two, joint):
    found = {(c.a, c.b): c for c in joint(two).comparisons}
    assert found["smollm2 ONNX q4_0", "smollm2 torch"].only_a == 1
    assert found["minilm ONNX q4_0", "minilm torch"].only_b == 2


def test_the_choice_is_the_first_thing_said(two, joint):
    report = joint(two)
    # 2 of 40 rows against none: the lowest 2.5 % of the resampled differences are at -5 of 40 rows
    assert report.choice.difference.low == pytest.approx(-0.125)
    said = (
        "Cheapest not shown to be worse than the best: minilm ONNX q4_0 (95.0 %, 1.00 ms, 90.0 MB); the best is "
        "smollm2 ONNX q4_0 (100.0 %, 9.00 ms, 90.0 MB). With 40 rows it may yet be up to 12.5 points worse."
    )
    assert " ".join(terminal_table(report).split("\n\n")[0].split()) == said
    assert markdown(report).split("\n\n")[1] == f"**{said}**"
    assert f'<p class="headline">{said}</p>' in html(report)


def test_of_one_student_the_choice_is_said_at_the_top_too(handmade):
    report = handmade(artifact=GOLD).report()
    said = "The student ONNX q4_0 (100.0 %, 20.5 ms, 90.0 MB) is the best, and all that is cheaper is shown to be worse"
    assert " ".join(terminal_table(report).split("\n\n")[0].split()).startswith(f"{said}: floor.")
    assert markdown(report).split("\n\n")[2].startswith(said)
    assert said in html(report)


def test_with_one_candidate_nothing_is_called_the_cheapest(handmade):
    report = handmade(floor=None).report()
    for text in (terminal_table(report), markdown(report), html(report)):
        assert "heapest" not in text
        assert "is the best" not in text


def test_the_floor_can_be_best_and_cheapest(joint, handmade):
    perfect = [handmade(student=name, floor=GOLD, artifact=wrong_on(*range(9))) for name in ("minilm", "smollm2")]
    pairs = [(c.a, c.b) for c in joint(perfect).comparisons]
    assert len(pairs) == len(set(pairs)) == 4, "the best is the floor, which every artifact meets once"
    said = "The floor (100.0 %, 0.50 ms, 0.50 MB) is the best, and nothing is cheaper."
    assert terminal_table(joint(perfect)).startswith(said)


def test_a_report_of_several_reads_back_equal_and_names_every_bundle(two, joint, tmp_path):
    report = joint(two)
    manifest.save(tmp_path / "report.json", report)
    assert manifest.load(Report, tmp_path / "report.json") == report
    assert report.bundle_sha256 == {
        name: manifest.sha256_file(made.folder / "bundle.json")
        for name, made in zip(("minilm", "smollm2"), two, strict=True)
    }
    assert all(sha256 in markdown(report) for sha256 in report.bundle_sha256.values())


def test_the_plots_hold_what_runs_on_the_device_in_a_colour_for_each_student(two, joint):
    tree = ElementTree.fromstring(html(joint(two)))
    for svg in list(tree.iter("svg"))[:2]:
        names = {(e.get("class"), e.text.removesuffix(" *")) for e in svg.iter("text") if "name" in e.get("class", "")}
        assert names == {
            ("name ", "floor"),
            ("name hue0 full", "minilm ONNX q4_0"),
            ("name hue1 full", "smollm2 ONNX q4_0"),
        }


def test_a_floor_that_is_another_in_another_bundle_is_told(handmade, joint):
    floors = [handmade(student="a"), handmade(student="b", floor=GOLD)]
    note = next(s.note for s in joint(floors).systems if s.kind == "floor")
    assert note == "TF-IDF (of the first bundle; another holds other answers)"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"gold": wrong_on(7)}, "other test rows"),
        ({"gold": None}, "other test rows"),
        ({"teacher": wrong_on(7)}, "other answers of the teacher"),
        ({"none": "never"}, "other labels"),
    ],
)
def test_bundles_that_are_not_judged_alike_are_refused_by_name(handmade, tmp_path, other, said):
    made = [handmade(student="minilm"), handmade(student="smollm2"), handmade(student="third", **other)]
    with pytest.raises(EdgestillError, match=rf"third \(third\) has {said} than .*minilm") as caught:
        run_bench([m.folder for m in made], tmp_path / "out", quiet)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_two_bundles_of_one_student_are_refused(handmade, tmp_path):
    one = handmade(student="minilm").folder
    two = one.rename(tmp_path / "copy")
    one = handmade(student="minilm").folder
    for folders in ([one, two], [one, one]):
        with pytest.raises(UsageError, match="both hold a student named 'minilm'"):
            run_bench(folders, tmp_path / "out", quiet)
    with pytest.raises(UsageError, match="no bundle"):
        run_bench([], tmp_path / "out", quiet)


def test_a_report_inside_the_second_bundle_is_refused(two, tmp_path):
    with pytest.raises(UsageError, match=r"lies in the bundle"):
        run_bench([m.folder for m in two], two[1].folder / "report", quiet)
    (two[1].folder / "task.json").write_text("{}")
    with pytest.raises(EdgestillError, match=r"smollm2: task.json was changed"):
        run_bench([m.folder for m in two], tmp_path / "out", quiet)


def test_what_an_interrupted_run_measured_of_each_student_is_kept(two, tmp_path):
    out, told, folders = tmp_path / "out", [], [m.folder for m in two]
    keep(two, out, "samples-minilm-onnx.jsonl", "samples-smollm2-onnx.jsonl")
    report, stood = run_bench(folders, out, lambda *line: told.append(line))
    assert not stood
    assert not told
    names = sorted(p.name for p in out.iterdir())
    assert names == ["report.html", "report.json", "report.md", "rows.jsonl", "samples.jsonl"]
    assert run_bench(folders, out, quiet) == (report, True)
    students = [json.loads(line)["student"] for line in (out / "samples.jsonl").read_text().splitlines()]
    assert students == ["minilm"] * 41 + ["smollm2"] * 41


def test_a_report_of_fewer_or_of_changed_bundles_does_not_stand(two, handmade, tmp_path):
    out, both = tmp_path / "out", ("samples-minilm-onnx.jsonl", "samples-smollm2-onnx.jsonl")
    keep(two, out, *both)
    run_bench([m.folder for m in two], out, quiet)
    changed = [two[0], handmade(student="smollm2", artifact=GOLD, latencies_ms=SLOW)]
    keep(changed, out, *both)
    assert run_bench([m.folder for m in changed], out, quiet)[1] is False
    keep(two[:1], out, "samples-onnx.jsonl")
    report, stood = run_bench([two[0].folder], out, quiet)
    assert not stood
    assert report.systems[-1].name == "student ONNX q4_0"


def test_the_artifact_that_fails_is_named_with_its_student(two, tmp_path):
    with pytest.raises(EdgestillError, match=r"measuring minilm onnx: .* failed"):
        run_bench([m.folder for m in two], tmp_path / "out", quiet)
    with pytest.raises(EdgestillError, match=r"measuring onnx: .* failed"):
        run_bench([two[0].folder], tmp_path / "out", quiet)


def test_none_of_these_is_found_and_falsely_found_as_counted_by_hand(handmade):
    gold = ["never"] * 10 + ["yes"] * 30
    # 9 of the 10 found; 3 of the other 30 called never all the same
    artifact = ["never"] * 9 + ["yes"] + ["never"] * 3 + ["yes"] * 27
    report = handmade(gold=gold, teacher=gold, floor=["yes"] * 40, base=["never"] * 40, artifact=artifact, none="never")
    none = report.report().none
    assert (none.label, none.n, none.n_other) == ("never", 10, 30)
    assert list(none.recall) == list(none.false_alarms) == ["teacher", "base", "floor", "student ONNX q4_0"]
    assert {name: found.value for name, found in none.recall.items()} == {
        "teacher": 1.0,
        "base": 1.0,
        "floor": 0.0,
        "student ONNX q4_0": 0.9,
    }
    assert [found.value for found in none.false_alarms.values()] == [0.0, 1.0, 0.0, 0.1]
    # Wilson's interval for 3 of 30 from the printed formula with z = 1.96
    assert none.false_alarms["student ONNX q4_0"].low == pytest.approx(0.0346, abs=1e-4)
    for text in (markdown(report.report()), html(report.report())):
        assert "None of these: never" in text
        assert "found, of 10 such rows %" in text
        assert "false alarms, of 30 other rows %" in text


def test_without_gold_the_teacher_is_no_row_of_none_of_these_and_without_rows_recall_is_unknown(handmade):
    none = handmade(gold=None, none="never").report().none
    assert "teacher" not in none.recall
    assert set(none.recall.values()) == {None}
    assert none.n_other == 40


def test_a_task_without_such_a_label_has_no_such_table(handmade):
    report = handmade().report()
    assert report.none is None
    assert "None of these" not in markdown(report) + html(report)


def test_recall_by_label_is_told_of_the_floor(handmade):
    lines = {line.label: line for line in handmade(floor=["yes"] * 40).report().labels}
    assert list(lines["yes"].recall) == ["teacher", "floor", "student ONNX q4_0"]
    assert (lines["yes"].recall["floor"].value, lines["no"].recall["floor"].value) == (1.0, 0.0)
