"""The verb as a whole."""

import json
import shutil
from collections.abc import Mapping

import pytest

from edgestill.benchmarks.bench import _bench_on, run_bench
from edgestill.benchmarks.devices.local import LocalMachine
from edgestill.benchmarks.entrants import read_entrants
from edgestill.benchmarks.measure import Placed, inputs_sha256, measure_artifact
from edgestill.runtime import manifest
from edgestill.runtime.bundle import load_bundle
from edgestill.runtime.errors import EdgestillError, UsageError


def quiet(stage, done, total):
    del stage, done, total


@pytest.fixture(scope="module")
def benched(tiny_bundle, tmp_path_factory):
    """A real report that found one artifact measured already: (report, folder, parts that were run)."""
    out = tmp_path_factory.mktemp("report")
    onnx = next(a for a in load_bundle(tiny_bundle).artifacts if a.engine == "onnx")
    placed = Placed(LocalMachine(), str(tiny_bundle), inputs_sha256(tiny_bundle))
    measure_artifact(placed, "student", onnx, out / "samples-onnx.jsonl", quiet)
    stages = set()
    report, reused = run_bench([tiny_bundle], out, lambda stage, *_: stages.add(stage))
    assert not reused
    return report, out, stages


def test_the_folder_holds_the_report_and_nothing_half_done(benched):
    _, out, _ = benched
    assert sorted(p.name for p in out.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
        "rows.jsonl",
        "samples.jsonl",
    ]


def test_what_an_interrupted_run_measured_is_not_measured_again(benched):
    _, _, stages = benched
    assert stages == {"load gguf", "bench gguf", "decode gguf"}


def test_the_same_command_again_does_nothing(tiny_bundle, benched):
    report, out, _ = benched
    before = (out / "report.json").stat().st_mtime_ns
    told = []
    assert run_bench([tiny_bundle], out, lambda *line: told.append(line)) == (report, True)
    assert (out / "report.json").stat().st_mtime_ns == before
    assert not told


def test_the_report_covers_every_artifact_and_system(tiny_bundle, benched):
    report, _, _ = benched
    facts = load_bundle(tiny_bundle)
    names = [s.name for s in report.systems]
    for artifact in facts.artifacts:
        assert f"student {artifact.engine.upper()} {artifact.quantization}" in names
    assert names[0] == "teacher"
    assert "student torch" in names
    assert report.bundle_sha256["student"] == manifest.sha256_file(tiny_bundle / "bundle.json")
    assert report.conditions.rows == sum(1 for _ in manifest.read_jsonl(tiny_bundle / "reference" / "test.jsonl"))


def test_samples_hold_every_request(benched):
    report, out, _ = benched
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    runs = [line for line in lines if line["kind"] == "run"]
    assert len(runs) == sum(s.kind == "artifact" for s in report.systems)
    timed = [line for line in lines if line["kind"] == "request" and line["latency_ms"] is not None]
    assert len(timed) == sum(report.conditions.requests.values())


def test_a_changed_bundle_is_refused_before_anything_is_written(handmade, tmp_path):
    made = handmade()
    (made.folder / "reference" / "test.jsonl").write_text("{}\n")
    with pytest.raises(EdgestillError, match=r"reference/test.jsonl was changed"):
        run_bench([made.folder], tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_a_report_inside_the_bundle_is_refused(handmade):
    made = handmade()
    with pytest.raises(UsageError, match="lies in the bundle"):
        run_bench([made.folder], made.folder / "report", quiet)


def test_a_folder_that_cannot_be_made_is_one_line(handmade, tmp_path):
    made = handmade()
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgestillError, match="cannot write"):
        run_bench([made.folder], tmp_path / "file" / "out", quiet)


def test_another_device_is_another_measurement(tiny_bundle, benched, tmp_path):
    _, out, _ = benched
    copy = tmp_path / "report"
    shutil.copytree(out, copy)
    told = set()
    report, reused = run_bench([tiny_bundle], copy, lambda part, *_: told.add(part), "constrained:1core")
    assert not reused
    assert told >= {"bench onnx", "bench gguf"}
    assert [site.machine.profile for site in report.machines] == ["1 core"]


def test_an_unknown_device_is_refused_before_anything_is_written(handmade, tmp_path):
    with pytest.raises(UsageError, match="no device is called 'pi'"):
        run_bench([handmade().folder], tmp_path / "out", quiet, "pi")
    assert not (tmp_path / "out").exists()


class WithoutGguf(LocalMachine):
    lacks: Mapping[str, str] = {"gguf": "there is no wheel for it"}


def test_what_a_machine_cannot_run_is_said_and_the_report_stands(tiny_bundle, tmp_path):
    entrants = read_entrants([tiny_bundle])
    report, stood = _bench_on(WithoutGguf(), entrants, tmp_path, quiet)
    assert ([run.engine for run in report.runs], stood) == (["onnx"], False)
    assert report.left_out == ("gguf: there is no wheel for it",)
    assert _bench_on(WithoutGguf(), entrants, tmp_path, quiet) == (report, True)
