"""One artifact on a machine, stage by stage; the machine here is this one, or answers as an emulated one does."""

import contextlib
import dataclasses
import json
import shutil
import time

import pytest

from edgestill.benchmarks.devices.local import LocalMachine, running
from edgestill.benchmarks.devices.machine import folder_name, open_machine
from edgestill.benchmarks.measure import LOADS, Placed, describe, inputs_sha256, measure_artifact
from edgestill.benchmarks.measurement import INVALID, VALID, Decoding, Machine, Noise, Request, Thermal
from edgestill.benchmarks.samples import read_measurement, read_samples, write_measurement
from edgestill.benchmarks.validity import drift_of, reasons_against
from edgestill.runtime import manifest
from edgestill.runtime.bundle import load_bundle, load_task
from edgestill.runtime.device import describe_device
from edgestill.runtime.errors import EdgestillError, UsageError


def quiet(part, done, planned):
    del part, done, planned


def artifact_of(bundle, engine="onnx"):
    return next(a for a in load_bundle(bundle).artifacts if a.engine == engine)


class Emulated(LocalMachine):
    """This machine, which says that it is emulated: a clock runs, and must not be believed."""

    facts = Machine("emulated:any", "emulated", emulated=True, emulator="qemu-any")


@pytest.fixture(scope="module")
def placed(tiny_bundle):
    return Placed(LocalMachine(), str(tiny_bundle), inputs_sha256(tiny_bundle))


@pytest.fixture(scope="module")
def measured(tiny_bundle, placed, tmp_path_factory):
    """The ONNX artifact of a real bundle: (measurement, where it was written, what progress was told)."""
    out = tmp_path_factory.mktemp("measured") / "samples-onnx.jsonl"
    told = []
    found = measure_artifact(placed, "student", artifact_of(tiny_bundle), out, lambda *line: told.append(line))
    return found, out, told


def test_every_test_row_is_answered_once_for_the_predictions(tiny_bundle, measured):
    found, _, _ = measured
    rows = [row["id"] for row in manifest.read_jsonl(tiny_bundle / "reference" / "test.jsonl")]
    assert [r.row_id for r in found.requests if r.round == 0] == rows
    assert all(abs(sum(r.probabilities.values()) - 1) < 1e-5 for r in found.requests if r.round == 0)
    assert all(0 <= r.confidence <= 1 for r in found.requests if r.round == 0)
    assert {(r.probabilities, r.confidence) for r in found.requests if r.round > 0} <= {(None, None)}


def test_the_label_is_the_most_likely_of_the_tasks(tiny_bundle, measured):
    found, _, _ = measured
    for request in (r for r in found.requests if r.round == 0):
        assert request.label == max(request.probabilities, key=request.probabilities.get)
        assert list(request.probabilities) == load_task(tiny_bundle).label_names


def test_loads_are_counted_apart_cold_and_warm(measured):
    loads = measured[0].loads
    assert len(loads.warm_s) == LOADS
    assert len(loads.cold_s) in (0, LOADS), "every one is cold, or the file is held by somebody else"
    assert (loads.cold_method is None) == (not loads.cold_s)
    assert all(s > 0 for s in (*loads.cold_s, *loads.warm_s, loads.import_s))
    assert loads.first_request_ms > 0


def test_writing_is_timed_token_by_token(measured):
    decoding = measured[0].decoding
    assert len(decoding.itl_ms) == 15 * len(decoding.ttft_ms)
    assert min(decoding.ttft_ms) > 0 and min(decoding.itl_ms) > 0
    mean_gap_s = sum(decoding.itl_ms) / len(decoding.itl_ms) / 1e3
    assert decoding.decode_tok_s == pytest.approx(1 / mean_gap_s)
    assert decoding.prefill_tok_s > decoding.prompt_tokens / (max(decoding.ttft_ms) / 1e3), "ttft holds tokenization"


def test_memory_offline_and_golden_rows_are_measured(tiny_bundle, measured):
    found, _, _ = measured
    memory = found.memory
    assert memory.rss_after_import_bytes < memory.rss_after_load_bytes <= memory.peak_rss_load_bytes
    assert memory.peak_rss_load_bytes <= memory.peak_rss_bytes
    assert memory.cgroup_peak_bytes is None, "the group of this process holds others too"
    assert found.offline_rows_per_s > 0
    golden = list(manifest.read_jsonl(tiny_bundle / "golden.jsonl"))
    assert found.golden.rows == len(golden)
    assert (found.bytes, found.path) == (artifact_of(tiny_bundle).bytes, "onnx/model_q4.onnx")


def test_every_part_tells_its_progress(measured):
    _, _, told = measured
    assert {part for part, _, _ in told} == {"load onnx", "bench onnx", "decode onnx"}
    assert all(0 < done <= planned for _, done, planned in told)
    assert ("load onnx", 2 * LOADS, 2 * LOADS) in told


def test_a_finished_measurement_is_reused(tiny_bundle, placed, measured):
    found, out, _ = measured
    told = []
    again = measure_artifact(placed, "student", artifact_of(tiny_bundle), out, lambda *line: told.append(line))
    assert again == found
    assert not told


def test_on_an_emulated_machine_no_clock_and_no_memory_is_told(tiny_bundle, tmp_path):
    place = Placed(Emulated(), str(tiny_bundle), inputs_sha256(tiny_bundle, machine=Emulated.facts))
    found = measure_artifact(place, "student", artifact_of(tiny_bundle), tmp_path / "samples.jsonl", quiet)
    assert {r.latency_ms for r in found.requests} == {None}
    assert {r.round for r in found.requests} == {0}
    for part in (found.memory, found.energy, found.thermal, found.noise):
        assert set(dataclasses.asdict(part).values()) == {None}
    assert (found.loads.import_s, found.loads.cold_s, found.loads.warm_s) == (None, (), ())
    assert found.decoding == Decoding(None, (), (), None, None)
    assert found.offline_rows_per_s is None
    assert found.golden.rows > 0, "what is not a matter of time is measured"
    assert (found.validity, found.reasons) == (VALID, ())


def test_other_limits_are_other_inputs(handmade):
    folder = handmade().folder
    small = Machine("constrained:1core", "constrained", profile="1 core")
    found = {inputs_sha256(folder), inputs_sha256(folder, machine=small)}
    found.add(inputs_sha256(folder, dataclasses.replace(describe_device(), governor="another")))
    assert len(found) == 3


def test_a_machine_says_what_it_is():
    assert describe(LocalMachine()) == describe_device()


def test_a_stage_that_fails_is_one_line(handmade, tmp_path):
    made = handmade()
    place = Placed(LocalMachine(), str(made.folder), "0" * 64)
    with pytest.raises(EdgestillError) as caught:
        measure_artifact(place, "student", artifact_of(made.folder), tmp_path / "out.jsonl", quiet)
    assert "measuring onnx: the stage load failed (exit 1)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


class Cut(LocalMachine):
    """A machine whose line goes dead: the process seems to end well and says nothing more."""

    @contextlib.contextmanager
    def stage(self, arguments):
        del arguments
        yield iter(['welcome#edgestill-stage {"kind": "planned", "requests": 3}\n', '#edgestill-stage {"kind": "resu'])


def test_a_stage_without_a_result_is_no_measurement():
    with pytest.raises(EdgestillError, match="the stage probe ended without a result"):
        describe(Cut())


def test_a_process_that_was_killed_names_the_signal():
    with pytest.raises(EdgestillError, match="it was ended by SIGKILL: last words"):  # noqa: SIM117
        with running(["sh", "-c", "echo last words >&2; kill -9 $$"], "it") as lines:
            assert list(lines) == []


def test_a_process_ends_with_the_block_that_started_it():
    start = time.monotonic()
    with pytest.raises(KeyError), running(["sh", "-c", "echo started; exec sleep 60"], "it") as lines:
        assert next(lines) == "started\n"
        raise KeyError
    assert time.monotonic() - start < 30


def test_a_measurement_reads_back_equal(handmade, tmp_path):
    found = handmade().measurement
    write_measurement(tmp_path / "samples.jsonl", found)
    assert read_measurement(tmp_path / "samples.jsonl") == found


def test_several_measurements_of_one_file_are_told_apart(handmade, tmp_path):
    found = handmade().measurement
    other = dataclasses.replace(found, engine="gguf", validity=INVALID, reasons=("contended",))
    for one in (found, other):
        write_measurement(tmp_path / "one.jsonl", one)
        with (tmp_path / "all.jsonl").open("a") as file:
            file.write((tmp_path / "one.jsonl").read_text())
    assert list(read_samples(tmp_path / "all.jsonl")) == [found, other]


@pytest.mark.parametrize("text", ["", '{"kind": "run", "engine": "onnx"}\n', '{"engine": "onnx"}\n'])
def test_a_file_that_holds_something_else_is_refused(tmp_path, text):
    (tmp_path / "samples.jsonl").write_text(text)
    with pytest.raises(EdgestillError, match="holds no measurement"):
        read_measurement(tmp_path / "samples.jsonl")


def requests_of(latencies, rows=10):
    return [Request("onnx", str(i % rows), i // rows, "a", None, ms, 7) for i, ms in enumerate(latencies)]


CALM, QUIET = Thermal(40.0, 50.0, 45.0, 0.9, False, 0.01), Noise(1.0, 0.1, 5, 0.5)


def test_a_calm_run_is_valid_and_so_is_one_whose_gauges_are_silent():
    enough = requests_of([5.0] * 60)
    assert reasons_against(enough, CALM, QUIET, False) == ()
    silent = Thermal(None, None, None, None, None, None), Noise(None, None, None, None)
    assert reasons_against(enough, *silent, False) == ()


@pytest.mark.parametrize(
    ("thermal", "noise", "changed", "why"),
    [
        ({"throttled": True}, {}, False, "throttled"),
        ({"drift": -0.3}, {}, False, "drift: the last quarter took -30%"),
        ({}, {"psi_cpu_some_avg10": 62.0}, False, "contended: tasks waited for a processor 62 %"),
        ({}, {"steal_percent": 9.0}, False, "contended: the host took 9.0 %"),
        ({}, {}, True, "governor"),
    ],
)
def test_every_disturbance_is_a_reason(thermal, noise, changed, why):
    calm, still = dataclasses.replace(CALM, **thermal), dataclasses.replace(QUIET, **noise)
    [reason] = reasons_against(requests_of([5.0] * 60), calm, still, changed)
    assert reason.startswith(why)


def test_too_few_requests_are_a_reason():
    [reason] = reasons_against(requests_of([5.0] * 20 + [None] * 20), CALM, QUIET, False)
    assert reason == "too few requests: 20 timed, wanted 29"


def test_drift_is_of_the_machine_and_not_of_the_rows():
    long_rows_last = [1.0 + 9 * (i % 40 >= 20) for i in range(160)]
    assert drift_of(requests_of(long_rows_last, rows=40)) == pytest.approx(0)
    slower = [ms * (1 + i / 160) for i, ms in enumerate(long_rows_last)]
    assert drift_of(requests_of(slower, rows=40)) > 0.4
    assert drift_of(requests_of([5.0] * 115)) is None, "too few to tell"
    assert drift_of(requests_of([5.0] * 160, rows=160)) is None, "no row was timed twice"


def test_machines_are_known_by_name():
    assert open_machine("local").facts == Machine("local", "local")
    assert folder_name("local") == "report"
    assert folder_name("ssh:pi@10.0.0.7") == "report-ssh-pi-10.0.0.7"
    for name in ("raspberry", "ssh:", "constrained:", "local:1"):
        with pytest.raises(UsageError, match="known are: local"):
            open_machine(name)


def test_a_bundle_that_moved_has_the_same_measurement(tiny_bundle, measured, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "elsewhere")
    assert inputs_sha256(tmp_path / "elsewhere") == measured[0].inputs_sha256
    assert json.loads(measured[1].read_text().splitlines()[0])["inputs_sha256"] == measured[0].inputs_sha256
