"""The emulated machine: what it is called here, and under `-m qemu` what it answers."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from small_bundle import small_bundle

from edgestill.benchmarks.devices import emulated, sysroot
from edgestill.benchmarks.devices.emulated import CORES, open_emulated, parse
from edgestill.benchmarks.devices.local import LocalMachine
from edgestill.benchmarks.stage import events
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

HWCAPS = {"fp": 0, "asimd": 1, "aes": 3, "pmull": 4, "sha1": 5, "sha2": 6, "crc32": 7, "atomics": 8, "fphp": 9} | {
    "asimdhp": 10,
    "cpuid": 11,
    "asimdrdm": 12,
    "lrcpc": 15,
    "dcpop": 16,
    "asimddp": 20,
}


def test_a_core_is_named_with_or_without_a_bound_of_rows() -> None:
    assert parse("cortex-a72") == ("cortex-a72", None)
    assert parse("neoverse-n1,rows=40") == ("neoverse-n1", 40)


@pytest.mark.parametrize("text", ["max", "cortex-a72,", "cortex-a72,rows=", "cortex-a72,rows=0", "cortex-a72,rows=-1"])
def test_qemus_own_core_and_what_is_no_number_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"known are: cortex-a53, cortex-a72|write emulated:cortex-a72,rows=40"):
        parse(text)


def test_without_a_sysroot_the_command_that_makes_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path))
    with pytest.raises(EdgestillError, match=r"type: python -m edgestill\.benchmarks\.devices\.sysroot$"):
        open_emulated("cortex-a53")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("false", r"the emulated Python failed \(exit 1\)"),
        ("true", "the emulated Python said nothing of itself - type"),
    ],
)
def test_an_emulated_python_that_does_not_speak_is_one_line(program: str, said: str) -> None:
    with pytest.raises(EdgestillError, match=said):
        emulated._probe([program])


def test_fewer_rows_are_spread_over_all_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    bundle = tmp_path / "bundle"
    manifest.write_jsonl(bundle / "reference" / "test.jsonl", ({"id": str(i)} for i in range(100)))
    (bundle / "onnx").mkdir()
    (bundle / "onnx" / "model.onnx").write_bytes(b"weights")
    (bundle / "bundle.json").write_text("{}")
    machine = emulated.EmulatedMachine(LocalMachine.facts, {}, ["false"], "", 4)
    for _ in range(2):  # the second time the folder is there
        place = Path(machine.place(bundle))
        assert [row["id"] for row in manifest.read_jsonl(place / "reference" / "test.jsonl")] == ["0", "25", "50", "75"]
        assert (place / "onnx" / "model.onnx").read_bytes() == b"weights"
        assert not (place / "onnx" / "model.onnx").is_symlink()
    assert len(list(manifest.read_jsonl(bundle / "reference" / "test.jsonl"))) == 100
    assert emulated.EmulatedMachine(LocalMachine.facts, {}, ["false"], "", 200).place(bundle) == str(bundle)


def test_no_debian_here_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgestillError, match="no apt-get on this machine - make the folder on a Debian"):
        sysroot.make_sysroot(tmp_path / "emulated")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    return small_bundle(tmp_path_factory.mktemp("small"), tiny_encoder)


@pytest.fixture(scope="module")
def made() -> Path:
    """The sysroot where users have it; made now if it is not there, which takes half a minute."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here to make a sysroot with")
    sysroot.make_sysroot(sysroot.default_folder())
    return sysroot.default_folder()


@pytest.mark.qemu
@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("core", CORES)
def test_a_core_has_the_instructions_that_its_cpuinfo_says(core: str) -> None:
    machine = open_emulated(core)
    script = "import ctypes; f = ctypes.CDLL(None).getauxval; f.restype = ctypes.c_ulong; print(f(16))"
    done = subprocess.run([*machine._command, "-c", script], capture_output=True, text=True, check=True)
    said = set(CORES[core].features.split())
    assert {name for name, bit in HWCAPS.items() if int(done.stdout) >> bit & 1} == said


@pytest.mark.qemu
@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(("core", "dot_products"), [("cortex-a72", False), ("cortex-a76", True)])
def test_a_bundle_answers_as_that_core(small: Path, core: str, dot_products: bool) -> None:
    with contextlib.closing(open_emulated(f"{core},rows=1")) as machine:
        place = machine.place(small)
        with machine.stage(["probe"]) as lines:
            found = next(events(lines))["device"]
        with machine.stage(["selfcheck", place, "onnx"]) as lines:
            checked = next(events(lines))
        with machine.stage(["task", place, "onnx", "--rounds", "1"]) as lines:
            answered = [event for event in events(lines) if event["kind"] == "request"]
    assert found["machine"] == "aarch64"
    assert ("asimddp" in found["isa"]) is dot_products
    assert machine.facts.emulated
    assert core in machine.facts.emulator
    assert machine.facts.profile == "1 evenly spaced test rows"
    assert checked["rows"] > 0
    assert checked["max_probability_difference"] < 0.2
    assert len(answered) == 1


@pytest.mark.qemu
@pytest.mark.usefixtures("made")
def test_a_stage_that_fails_in_the_emulator_is_named(tmp_path: Path) -> None:
    machine = open_emulated("cortex-a76")
    refused = pytest.raises(EdgestillError, match="the stage selfcheck on emulated:cortex-a76 failed")
    with refused, machine.stage(["selfcheck", str(tmp_path), "onnx"]) as lines:
        list(lines)
