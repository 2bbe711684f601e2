"""Fewer cores and less memory than this machine has."""

import os
import shutil
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from edgestill.benchmarks.bench import run_bench
from edgestill.benchmarks.devices import constrained
from edgestill.benchmarks.devices.constrained import Limits, group_parent, make_group, parse_limits, remove_group
from edgestill.benchmarks.devices.machine import DoesNotFit, open_machine
from edgestill.benchmarks.gauges.memory import MemoryGroup
from edgestill.benchmarks.measure import describe
from edgestill.benchmarks.stage import events
from edgestill.runtime.errors import EdgestillError, UsageError

PADDING_BYTES = 64_000_000  # far above what the rest of a stage takes for a moment


def can_limit_memory():
    try:
        remove_group(make_group(group_parent(), f"edgestill-try-{os.getpid()}", 10**9))
    except EdgestillError:
        return False
    return True


needs_groups = pytest.mark.skipif(not can_limit_memory(), reason="no control group can be made here")


@pytest.mark.parametrize(
    ("text", "limits", "profile"),
    [
        ("1core,512MB", Limits(1, 512_000_000), "1 core, 512 MB"),
        ("4cores", Limits(4, None), "4 cores"),
        ("2GB, 2cores", Limits(2, 2_000_000_000), "2 cores, 2000 MB"),
    ],
)
def test_limits_are_read_and_said(text, limits, profile):
    assert parse_limits(text) == limits
    assert limits.profile == profile


@pytest.mark.parametrize("text", ["0cores", "1core,2cores", "512", "512MiB", "1core,", "-1core", "512MB,1GB"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(UsageError, match="is no limit"):
        parse_limits(text)


def test_more_cores_than_there_are_are_refused():
    with pytest.raises(UsageError, match="10000 cores wanted"):
        open_machine("constrained:10000cores")


def test_a_stage_runs_on_as_many_cores_as_it_was_given():
    before = os.sched_getaffinity(0)
    with closing(open_machine("constrained:1core")) as machine:
        assert describe(machine).cores_usable == 1
    assert os.sched_getaffinity(0) == before


def put(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_in_version_2_the_nearest_group_that_hands_memory_on_is_taken(tmp_path):
    put(tmp_path, {"proc/self/cgroup": "0::/user.slice/app.slice/run.scope\n"})
    place = "sys/fs/cgroup/user.slice/app.slice"
    put(tmp_path, {f"{place}/{name}": "" for name in ("cgroup.procs", "run.scope/cgroup.procs")})
    put(tmp_path, {f"{place}/run.scope/cgroup.subtree_control": "\n"})
    with pytest.raises(EdgestillError, match="systemd-run"):
        group_parent(tmp_path)
    put(tmp_path, {f"{place}/cgroup.subtree_control": "cpu memory pids\n"})
    assert group_parent(tmp_path) == MemoryGroup(2, tmp_path / place)


def test_a_group_of_version_2_gets_its_limit_and_no_swap(tmp_path):
    put(tmp_path, {"cgroup.procs": ""})
    group = make_group(MemoryGroup(2, tmp_path), "edgestill-1", 512_000_000)
    assert (group.folder / "memory.max").read_text() == "512000000"
    assert constrained.limit_files(2, 5)["memory.swap.max"] == 0


def test_where_no_group_can_be_made_the_error_says_what_to_do(tmp_path):
    with pytest.raises(EdgestillError, match=r"no control groups for memory - run it as root, or .* systemd-run"):
        group_parent(tmp_path)


@needs_groups
def test_what_fits_is_measured_and_its_peak_is_that_of_its_own_group(tiny_bundle, tmp_path):
    large = shutil.copytree(tiny_bundle, tmp_path / "large")
    weights = next((large / "gguf").glob("*.gguf"))
    with weights.open("ab") as file:  # the engine maps the whole file, and keeps none of it in memory of its own
        file.write(bytes(PADDING_BYTES))
    with closing(open_machine("constrained:1core,400MB")) as machine:
        place = machine.place(large)
        assert Path(place) != large, "pages of a file that others have read are not charged"
        with machine.stage(["task", place, "gguf", "--rounds", "1"]) as lines:
            *_, result = events(lines)
    held, peak = result["memory"], result["memory"]["cgroup_peak_bytes"]
    assert held["anonymous_after_bytes"] + 0.9 * weights.stat().st_size < peak <= 400_000_000, "its file's pages count"
    assert not Path(place).exists()
    assert not list(group_parent().folder.glob(f"edgestill-{os.getpid()}-*"))


def test_copies_lie_where_users_keep_what_is_large_and_not_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    put(tmp_path / "bundle", {"bundle.json": "{}"})
    with closing(open_machine("constrained:1core")) as machine:
        place = Path(machine.place(tmp_path / "bundle"))
        assert place.is_relative_to(tmp_path / "cache" / "constrained")
        assert (place / "bundle.json").read_text() == "{}"
        with pytest.raises(EdgestillError, match=r"cannot copy .*nowhere.* - set EDGESTILL_CACHE to a folder"):
            machine.place(tmp_path / "nowhere")
    assert not list((tmp_path / "cache" / "constrained").iterdir())
    put(tmp_path, {"file": ""})
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(EdgestillError, match=r"cannot write below .*file/constrained: .* - set EDGESTILL_CACHE"):
        open_machine("constrained:1core")


@pytest.fixture
def in_memory():
    """A folder on a tmpfs."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("no tmpfs here to write to")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@needs_groups
def test_a_copy_that_stays_in_memory_is_refused_for_it_would_count_for_nobody(in_memory, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESTILL_CACHE", str(in_memory))
    put(tmp_path / "bundle", {"onnx/model.onnx": "x" * 100_000, "bundle.json": "{}"})
    said = "stay in memory, as on a tmpfs; wanted one whose pages can be dropped - set EDGESTILL_CACHE to a folder"
    with closing(open_machine("constrained:400MB")) as machine, pytest.raises(EdgestillError, match=said):
        machine.place(tmp_path / "bundle")
    with closing(open_machine("constrained:1core")) as machine:
        machine.place(tmp_path / "bundle")


@needs_groups
def test_what_does_not_fit_is_an_answer_and_no_crash(tiny_bundle):
    said = r"does not fit into 16 MB \(the stage load\) - allow more memory"
    with closing(open_machine("constrained:1core,16MB")) as machine:
        place = machine.place(tiny_bundle)
        with pytest.raises(DoesNotFit, match=said), machine.stage(["load", place, "onnx", "--cold"]) as lines:
            list(lines)


@needs_groups
def test_an_artifact_that_does_not_fit_is_said_in_one_line(tiny_bundle, tmp_path):
    with pytest.raises(DoesNotFit, match="onnx does not fit into 32 MB") as caught:
        run_bench([tiny_bundle], tmp_path / "out", lambda part, done, planned: None, "constrained:32MB")
    assert "\n" not in str(caught.value)
