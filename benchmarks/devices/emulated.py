"""An ARM processor in software, for what its instructions answer and never for how fast: qemu's user mode, core pinned.

The core decides which kernels an int4 model runs on, and those do not agree with each other. The default core of qemu
has every instruction there is and proves nothing about a board; it is therefore not on offer.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from edgestill.benchmarks.devices import remote, sysroot, wheelhouse
from edgestill.benchmarks.devices.local import STAGE_MODULE, running
from edgestill.benchmarks.measurement import Machine
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

ARMV8_0 = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
ARMV8_2 = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
TEST_ROWS = Path("reference") / "test.jsonl"


@dataclass(frozen=True)
class Core:
    """A processor core as /proc/cpuinfo describes it: Arm's part number, and what qemu's model of it can do."""

    part: str
    features: str

    def cpuinfo(self, cores: int) -> str:
        """Text of /proc/cpuinfo: libraries that find an x86 one there crash."""
        block = (
            "processor\t: {number}\nBogoMIPS\t: 100.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
            "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 0\n\n"
        )
        return "".join(block.format(number=n, features=self.features, part=self.part) for n in range(cores))


CORES = {
    "cortex-a53": Core("0xd03", ARMV8_0),
    "cortex-a72": Core("0xd08", ARMV8_0),
    "cortex-a76": Core("0xd0b", ARMV8_2),
    "neoverse-n1": Core("0xd0c", ARMV8_2),
}


class EmulatedMachine:
    """Stages as emulated processes of this machine; see `machine.DeviceMachine`."""

    def __init__(
        self, facts: Machine, lacks: dict[str, str], command: Sequence[str], python_path: str, rows: int | None
    ) -> None:
        """Use `open_emulated` instead."""
        self.facts = facts
        self.lacks: Mapping[str, str] = lacks
        self._command = list(command)
        self._environment = _environment(python_path)
        self._rows = rows

    def place(self, bundle: Path) -> str:
        """The bundle where it is; with fewer rows wanted, a folder of links to it with fewer test rows."""
        rows = list(manifest.read_jsonl(bundle / TEST_ROWS)) if self._rows else []
        if self._rows is None or self._rows >= len(rows):
            return str(bundle.resolve())
        folder = sysroot.default_folder() / "bundles" / f"{manifest.sha256_file(bundle / 'bundle.json')}-{self._rows}"
        for path in sorted(p for p in bundle.rglob("*") if p.is_file() and p.relative_to(bundle) != TEST_ROWS):
            _link(path.resolve(), folder / path.relative_to(bundle))
        manifest.write_jsonl(folder / TEST_ROWS, [rows[i * len(rows) // self._rows] for i in range(self._rows)])
        return str(folder)

    def stage(self, arguments: Sequence[str]) -> AbstractContextManager[Iterator[str]]:
        """Start one stage in the emulator; it starts no process, for a child would run outside."""
        called = f"the stage {arguments[0]} on {self.facts.name}"
        return running([*self._command, "-m", STAGE_MODULE, *arguments], called, self._environment)

    def close(self) -> None:
        """Nothing was taken."""


def open_emulated(text: str) -> EmulatedMachine:
    """The machine of `emulated:TEXT`, such as cortex-a72 or, because emulation is slow, cortex-a72,rows=40.

    Raises:
        UsageError: a core that is not known, or a number of rows that cannot be read.
        EdgestillError: no emulator or no sysroot, or no wheel.
    """
    name, rows = parse(text)
    folder = sysroot.default_folder()
    emulator, python = sysroot.find_emulator(folder), sysroot.find_python(folder)
    if emulator is None or python is None:
        lacking = "qemu for aarch64" if emulator is None else "arm64 Python"
        raise EdgestillError(f"there is no {lacking} in {folder}", f"type: {sysroot.COMMAND}")
    root = _root_of_core(folder, name)
    command = [str(emulator), "-cpu", name, "-L", str(root), str(root / "usr" / "bin" / python.name)]
    platform = wheelhouse.read_platform(_probe(command))
    found = wheelhouse.parcels(platform, (), remote.cache_folder())
    for sha256, archive in found.items():
        if not remote.unpacked(folder, sha256):
            remote.unpack_parcel(folder, sha256, archive)
    facts = Machine(
        name=f"emulated:{text}",
        transport="emulated",
        emulated=True,
        emulator=f"{_version(emulator)}, {name}",
        profile=f"{rows} evenly spaced test rows" if rows else None,
    )
    return EmulatedMachine(
        facts, wheelhouse.lacks(platform, ()), command, remote.parcel_path(folder, list(found)), rows
    )


def parse(text: str) -> tuple[str, int | None]:
    """Core and rows of "cortex-a72,rows=40"; None is all rows.

    Raises:
        UsageError: another core, or no such number.
    """
    name, comma, rest = text.partition(",")
    if name not in CORES:
        raise UsageError(f"no core {name!r} is emulated", f"known are: {', '.join(CORES)}")
    rows = rest.removeprefix("rows=")
    if comma and not (rest.startswith("rows=") and rows.isdecimal() and int(rows)):
        raise UsageError(f"{rest!r} in emulated:{text} is no number of rows", f"write emulated:{name},rows=40")
    return name, int(rows) if comma else None


def _root_of_core(folder: Path, name: str) -> Path:
    """The sysroot with a /proc/cpuinfo of that core: links to the one sysroot beside that one file."""
    root = folder / "cores" / name
    (root / "proc").mkdir(parents=True, exist_ok=True)
    for entry in (folder / "root").iterdir():
        if not (root / entry.name).is_symlink():
            (root / entry.name).symlink_to(entry.resolve())
    (root / "proc" / "cpuinfo").write_text(CORES[name].cpuinfo(os.cpu_count() or 1), encoding="utf-8")
    return root


def _probe(command: Sequence[str]) -> dict[str, object]:
    text = Path(remote.__file__).read_text(encoding="utf-8")
    with running([*command, "-c", text, "probe", "null"], "the emulated Python", _environment("")) as lines:
        said = [line.removeprefix(remote.MAGIC) for line in lines if line.startswith(remote.MAGIC)]
    if not said:
        raise EdgestillError("the emulated Python said nothing of itself", f"type: {sysroot.COMMAND}")
    found: dict[str, object] = json.loads(said[0])
    return found


def _environment(python_path: str) -> dict[str, str]:
    """Few variables: those of the host's Python and loader would reach the emulated ones."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "EDGESTILL_CACHE") if name in os.environ}
    return {**kept, "PATH": "/usr/bin:/bin", "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"}


def _version(emulator: Path) -> str:
    done = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split(" (")[0].splitlines()[0].replace(" version", "")


def _link(source: Path, target: Path) -> None:
    """A hard link, for an engine refuses weights that a soft one leads out of their folder; a copy across disks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        target.write_bytes(source.read_bytes())
