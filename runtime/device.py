"""Which machine this is: processor, instruction sets, cores, memory, versions. Reads files only."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What decides which integer kernels an int4 model runs on: results differ between them.
ISA_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve", "bf16")
# Arm's own cores by implementer and part of their main ID register, as lscpu of util-linux names them.
ARM_CORES = {
    ("0x41", part): name
    for part, name in {
        "0xd03": "Cortex-A53",
        "0xd05": "Cortex-A55",
        "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72",
        "0xd0a": "Cortex-A75",
        "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse-N1",
        "0xd0d": "Cortex-A77",
        "0xd40": "Neoverse-V1",
        "0xd41": "Cortex-A78",
        "0xd49": "Neoverse-N2",
        "0xd4f": "Neoverse-V2",
    }.items()
}
REPORTED_PACKAGES = ("edgestill", "numpy", "onnxruntime", "tokenizers", "llama-cpp-python")


@dataclass(frozen=True)
class Device:
    """One machine. Unknown values are None, never 0."""

    cpu_model: str | None
    machine: str
    isa: tuple[str, ...]
    cores_usable: int
    ram_bytes: int | None
    governor: str | None
    os: str
    python: str
    packages: dict[str, str]


def describe_device(root: Path = Path("/")) -> Device:
    """Read /proc and /sys below `root` (another folder in tests)."""
    info = read_text(root / "proc/cpuinfo")
    return Device(
        cpu_model=_field(info, ("model name", "Model", "Hardware")) or _arm_core(info),
        machine=platform.machine(),
        isa=tuple(flag for flag in ISA_FLAGS if flag in _field_set(info)),
        cores_usable=usable_cores(),
        ram_bytes=_ram_bytes(read_text(root / "proc/meminfo")),
        governor=governor(root),
        os=platform.platform(),
        python=platform.python_version(),
        packages=package_versions(REPORTED_PACKAGES),
    )


def governor(root: Path = Path("/")) -> str | None:
    """What sets the clock of the first core, such as "ondemand" (cpufreq of the kernel)."""
    return read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def usable_cores() -> int:
    """Cores this process may run on, at least 1: the affinity mask, not the machine's core count."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on every system
        return max(1, os.cpu_count() or 1)


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions by distribution name; a package that is absent is left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_text(path: Path) -> str:
    """A file of /proc or /sys as text; empty where it is absent or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(cpuinfo: str, names: tuple[str, ...]) -> str | None:
    for name in names:
        for line in cpuinfo.splitlines():
            key, colon, value = line.partition(":")
            if colon and key.strip() == name and value.strip():
                return value.strip()
    return None


def _arm_core(cpuinfo: str) -> str | None:
    """The first core by its number, for machines whose /proc/cpuinfo holds nothing but numbers."""
    maker, part = _field(cpuinfo, ("CPU implementer",)), _field(cpuinfo, ("CPU part",))
    if maker is None or part is None:
        return None
    return ARM_CORES.get((maker, part), f"ARM implementer {maker} part {part}")


def _field_set(cpuinfo: str) -> set[str]:
    return set((_field(cpuinfo, ("flags", "Features")) or "").split())


def _ram_bytes(meminfo: str) -> int | None:
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def peak_rss_bytes() -> int | None:
    """Largest resident set of this process since it started its program (VmHWM), None where /proc does not tell."""
    for line in read_text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
