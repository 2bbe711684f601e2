"""Bytes of this process and of its control group, as proc(5) and the cgroup files tell them; None where they do not."""

from dataclasses import dataclass
from pathlib import Path

from edgestill.runtime.device import read_text

SYSTEM = Path("/")


@dataclass(frozen=True)
class MemoryGroup:
    """The control group whose memory limit holds for this process: version 1 or 2, and its folder."""

    version: int
    folder: Path


def resident_bytes(root: Path = SYSTEM) -> int | None:
    """Resident set now (VmRSS)."""
    return _kib_line(root / "proc/self/status", "VmRSS")


def anonymous_bytes(root: Path = SYSTEM) -> int | None:
    """Resident pages of no file (RssAnon): what the system cannot drop and read again."""
    return _kib_line(root / "proc/self/status", "RssAnon")


def proportional_bytes(root: Path = SYSTEM) -> int | None:
    """Resident set with every shared page divided by the number of its users (Pss)."""
    return _kib_line(root / "proc/self/smaps_rollup", "Pss")


def group_peak_bytes(root: Path = SYSTEM) -> int | None:
    """The most that the control group of this process ever held, pages of files included."""
    group = memory_group(root)
    if group is None:
        return None
    name = "memory.peak" if group.version == 2 else "memory.max_usage_in_bytes"
    text = read_text(group.folder / name).strip()
    return int(text) if text.isdigit() else None


def memory_group(root: Path = SYSTEM) -> MemoryGroup | None:
    """The group that /proc/self/cgroup names (cgroups(7)): of version 1 where its memory controller is mounted."""
    unified = None
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return MemoryGroup(1, root / "sys/fs/cgroup/memory" / path.lstrip("/"))
        if not controllers:
            unified = MemoryGroup(2, root / "sys/fs/cgroup" / path.lstrip("/"))
    return unified


def _kib_line(path: Path, key: str) -> int | None:
    for line in read_text(path).splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None
