"""One artifact in a process of its own."""

import pytest

from edgestill.benchmarks.measure import (
    answer_rows,
    inputs_sha256,
    measure_artifact,
    process_age_s,
    psi_cpu_some_avg10,
    read_measurement,
    rss_bytes,
    write_measurement,
)
from edgestill.runtime import manifest, student
from edgestill.runtime.bundle import load_bundle, load_task
from edgestill.runtime.errors import EdgestillError


def quiet(stage, done, total):
    del stage, done, total


@pytest.fixture(scope="module")
def measured(bundle, tmp_path_factory):
    """The ONNX artifact of a real bundle: (measurement, where it was written, what progress was told)."""
    out = tmp_path_factory.mktemp("measured") / "samples-onnx.jsonl"
    told = []
    found = measure_artifact(bundle, "onnx", out, lambda *line: told.append(line))
    return found, out, told


def test_every_test_row_is_answered_once_for_the_predictions(bundle, measured):
    found, _, _ = measured
    rows = [row["id"] for row in manifest.read_jsonl(bundle / "reference" / "test.jsonl")]
    assert [r.row_id for r in found.requests if r.round == 0] == rows
    assert all(abs(sum(r.probabilities.values()) - 1) < 1e-5 for r in found.requests if r.round == 0)
    assert {r.probabilities for r in found.requests if r.round > 0} <= {None}


def test_a_row_is_answered_alike_in_every_round(measured):
    found, _, _ = measured
    answers = {(r.row_id, r.label) for r in found.requests}
    rows = {r.row_id for r in found.requests}
    assert len(answers) <= len(rows) + 0.02 * len(rows), "only a near tie may flip with what the engine still held"


def test_the_label_is_the_most_likely_of_the_tasks(bundle, measured):
    found, _, _ = measured
    for request in (r for r in found.requests if r.round == 0):
        assert request.label == max(request.probabilities, key=request.probabilities.get)
        assert list(request.probabilities) == load_task(bundle).label_names


def test_clock_and_memory_are_measured(bundle, measured):
    found, _, told = measured
    assert found.load_s > 0
    assert found.first_request_ms > 0
    assert found.rss_after_load_bytes <= found.peak_rss_bytes
    assert found.bytes == next(a.bytes for a in load_bundle(bundle).artifacts if a.engine == "onnx")
    assert all(r.latency_ms is None or r.latency_ms > 0 for r in found.requests)
    assert told and all(stage == "bench onnx" and 0 < done <= total for stage, done, total in told)


def test_a_finished_measurement_is_reused(bundle, measured):
    found, out, _ = measured
    told = []
    assert measure_artifact(bundle, "onnx", out, lambda *line: told.append(line)) == found
    assert not told


def test_a_measurement_of_other_inputs_is_made_again(bundle, tmp_path, handmade):
    out = tmp_path / "samples-onnx.jsonl"
    write_measurement(out, handmade().measurement)
    assert measure_artifact(bundle, "onnx", out, quiet).inputs_sha256 == inputs_sha256(bundle)


def test_an_answer_from_held_state_has_no_latency(bundle):
    rows = [{"id": "1", "text": "only this"}]
    requests = list(answer_rows(student.load(bundle, "onnx"), rows))
    assert [r.latency_ms for r in requests] == [None], "one text alone is never timed: its state is still held"


def test_rounds_are_shuffled_and_hold_every_row(bundle):
    rows = [{"id": str(i), "text": f"text number {i}"} for i in range(4)]
    requests = list(answer_rows(student.load(bundle, "onnx"), rows))
    rounds = [[r.row_id for r in requests if r.round == number] for number in range(1 + requests[-1].round)]
    assert rounds[0] == ["0", "1", "2", "3"]
    assert all(sorted(ids) == rounds[0] for ids in rounds[:-1])
    assert any(ids != rounds[0] for ids in rounds[1:-1])


def test_a_process_that_fails_is_one_line(handmade, tmp_path):
    with pytest.raises(EdgestillError) as caught:
        measure_artifact(handmade().folder, "onnx", tmp_path / "out.jsonl", quiet)
    assert "measuring onnx failed (exit 1)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_measurement_reads_back_equal(handmade, tmp_path):
    found = handmade().measurement
    write_measurement(tmp_path / "samples.jsonl", found)
    assert read_measurement(tmp_path / "samples.jsonl") == found


@pytest.mark.parametrize("text", ["", '{"kind": "run", "engine": "onnx"}\n'])
def test_a_file_that_holds_something_else_is_refused(tmp_path, text):
    (tmp_path / "samples.jsonl").write_text(text)
    with pytest.raises(EdgestillError, match="holds no measurement"):
        read_measurement(tmp_path / "samples.jsonl")


def test_pressure_is_read_and_null_where_the_kernel_has_none(tmp_path):
    assert psi_cpu_some_avg10(tmp_path) is None
    (tmp_path / "proc/pressure").mkdir(parents=True)
    lines = "some avg10=12.50 avg60=3.00 avg300=1.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    (tmp_path / "proc/pressure/cpu").write_text(lines)
    assert psi_cpu_some_avg10(tmp_path) == 12.5


def test_this_process_has_an_age_and_a_size():
    assert process_age_s() is None or process_age_s() > 0
    assert rss_bytes() is None or rss_bytes() > 1_000_000
