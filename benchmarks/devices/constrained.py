"""The machine at hand with fewer cores and less memory: what an artifact needs, and not what another device does.

Cores are taken by affinity, memory by a control group of version 1 or 2 without swap; an address-space limit would
count what is never used. Clocks are this machine's own.
"""

import contextlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgestill.benchmarks.devices.local import NOTHING, STAGE_MODULE, running
from edgestill.benchmarks.devices.machine import DoesNotFit
from edgestill.benchmarks.devices.remote import cache_folder
from edgestill.benchmarks.gauges.memory import SYSTEM, MemoryGroup, memory_group
from edgestill.benchmarks.gauges.pages import drop_pages
from edgestill.benchmarks.measurement import Machine
from edgestill.runtime.device import usable_cores
from edgestill.runtime.errors import EdgestillError, UsageError

UNITS = {"MB": 10**6, "GB": 10**9}
EXAMPLE = "write constrained:1core,512MB, constrained:2cores or constrained:512MB"
NO_GROUP_HINT = (
    "run it as root, or where control groups are version 2 as: systemd-run --user --scope -p Delegate=yes edgestill ..."
)
FOLDER_HINT = "set EDGESTILL_CACHE to a folder on a disk with room"
# A group can be removed a moment after its last process ended.
REMOVAL_TRIES, REMOVAL_WAIT_S = 50, 0.02


@dataclass(frozen=True)
class Limits:
    """What a stage may use; None is all that this process may."""

    cores: int | None
    memory_bytes: int | None

    @property
    def profile(self) -> str:
        """The limits in words, such as "1 core, 512 MB"."""
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}" if self.cores else None
        memory = f"{self.memory_bytes / 1e6:g} MB" if self.memory_bytes else None
        return ", ".join(part for part in (cores, memory) if part)


def open_constrained(text: str) -> "ConstrainedMachine":
    """The machine of `constrained:TEXT`.

    Raises:
        UsageError: limits that cannot be read, or more cores than there are.
        EdgestillError: no control group can be made here, or no process bound to cores.
    """
    limits = parse_limits(text)
    if limits.cores and not hasattr(os, "sched_setaffinity"):
        raise EdgestillError("this system cannot bind a process to cores", "measure on Linux")
    if limits.cores and limits.cores > usable_cores():
        raise UsageError(f"{limits.cores} cores wanted, this process may use {usable_cores()}", "name fewer cores")
    return ConstrainedMachine(f"constrained:{text}", limits)


def parse_limits(text: str) -> Limits:
    """Cores and memory from such as "1core,512MB"; 1 MB is a million bytes.

    Raises:
        UsageError: anything else.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)(cores?|MB|GB)", part.strip())
        name = "memory" if match and match[2] in UNITS else "cores"
        if match is None or name in found:
            raise UsageError(f"{part!r} in constrained:{text} is no limit", EXAMPLE)
        found[name] = int(match[1]) * UNITS.get(match[2], 1)
    return Limits(found.get("cores"), found.get("memory"))


class ConstrainedMachine:
    """Stages within limits, each in a control group of its own, on a copy of the bundle that nobody else reads.

    Pages of a file that is in the cache already are charged to whoever read it first: the copy, dropped from the cache
    before every stage but a warm load, makes the stage pay for the artifact. Pages of libraries are shared with the
    host and not charged.
    """

    lacks: Mapping[str, str] = NOTHING

    def __init__(self, name: str, limits: Limits, root: Path = SYSTEM) -> None:
        """`root` is where sys and proc are looked for.

        Raises:
            EdgestillError: no control group can be made here, or no folder for copies.
        """
        self.facts = Machine(name, "constrained", profile=limits.profile, memory_limit_bytes=limits.memory_bytes)
        self._limits = limits
        self._parent = group_parent(root) if limits.memory_bytes else None
        self._copies = _folder_for_copies()
        self._numbers = itertools.count()

    def place(self, bundle: Path) -> str:
        """A copy, on the disk, and so that it is not in memory.

        Raises:
            EdgestillError: it cannot be written, or its pages stay in memory, where no stage pays for them.
        """
        copy = Path(self._copies.name) / str(next(self._numbers))
        try:
            shutil.copytree(bundle, copy)
        except OSError as error:
            why = error.args[0][0][2] if isinstance(error, shutil.Error) else error
            raise EdgestillError(f"cannot copy {bundle} to {copy}: {why}", FOLDER_HINT) from None
        largest = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size, default=None)
        if self._parent is not None and largest is not None and drop_pages(largest) is None:
            raise EdgestillError(
                f"files in {self._copies.name} stay in memory, as on a tmpfs; wanted one whose pages can be dropped",
                FOLDER_HINT,
            )
        return str(copy)

    @contextlib.contextmanager
    def stage(self, arguments: Sequence[str]) -> Iterator[Iterator[str]]:
        """Start it within the limits; see `DeviceMachine`."""
        command = [sys.executable, "-m", STAGE_MODULE, *arguments]
        called = f"the stage {arguments[0]}"
        if self._parent is None or self._limits.memory_bytes is None:
            with self._within(command, called) as lines:
                yield lines
            return
        command.append("--own-group")
        if arguments[0] != "load":  # which says itself when it is to be cold
            command.append("--cold")
        group = make_group(self._parent, f"edgestill-{os.getpid()}-{next(self._numbers)}", self._limits.memory_bytes)
        join = ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', str(group.folder / "cgroup.procs")]
        try:
            with self._within([*join, *command], called) as lines:
                yield lines
        except EdgestillError:
            if oom_kills(group):
                raise DoesNotFit(
                    f"does not fit into {self._limits.memory_bytes / 1e6:g} MB ({called})",
                    "allow more memory, or build a smaller student",
                ) from None
            raise
        finally:
            remove_group(group)

    @contextlib.contextmanager
    def _within(self, command: Sequence[str], called: str) -> Iterator[Iterator[str]]:
        """The process on its cores; this one, which reads its lines, may use the others again."""
        with contextlib.ExitStack() as stack:
            with affinity(self._limits.cores):
                lines = stack.enter_context(running(command, called))
            yield lines

    def close(self) -> None:
        """Remove the copies."""
        self._copies.cleanup()


def _folder_for_copies() -> tempfile.TemporaryDirectory[str]:
    """Not where temporary files go: that is often a tmpfs, whose pages are memory of whoever wrote them."""
    folder = cache_folder() / "constrained"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise EdgestillError(f"cannot write below {folder}: {error.strerror}", FOLDER_HINT) from None


@contextlib.contextmanager
def affinity(cores: int | None) -> Iterator[None]:
    """Within the block this thread, and what it starts, runs on the first `cores` of its processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def group_parent(root: Path = SYSTEM) -> MemoryGroup:
    """The nearest control group, from that of this process upward, in which a group with a limit can be made.

    Raises:
        EdgestillError: there is none, or it is not ours to write.
    """
    own = memory_group(root)
    if own is None:
        raise EdgestillError("this system has no control groups for memory", NO_GROUP_HINT)
    top = root / "sys/fs/cgroup" / ("memory" if own.version == 1 else "")
    folders = [folder for folder in (own.folder, *own.folder.parents) if folder.is_relative_to(top)]
    for folder in folders:
        if own.version == 2 and not _gives_memory(folder):
            continue
        if os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK):
            return MemoryGroup(own.version, folder)
    raise EdgestillError(f"no control group with a memory limit can be made below {top}", NO_GROUP_HINT)


def _gives_memory(folder: Path) -> bool:
    try:
        return "memory" in (folder / "cgroup.subtree_control").read_text(encoding="utf-8").split()
    except OSError:
        return False


def limit_files(version: int, limit_bytes: int) -> dict[str, int]:
    """What is written into a group's files: the limit, and no swap."""
    if version == 2:
        return {"memory.max": limit_bytes, "memory.swap.max": 0}
    return {"memory.limit_in_bytes": limit_bytes, "memory.memsw.limit_in_bytes": limit_bytes, "memory.swappiness": 0}


def make_group(parent: MemoryGroup, name: str, limit_bytes: int) -> MemoryGroup:
    """A group below `parent` that may hold `limit_bytes`. A kernel without accounting of swap has no file for it.

    Raises:
        EdgestillError: the system refuses.
    """
    folder = parent.folder / name
    try:
        folder.mkdir()
        for file, value in limit_files(parent.version, limit_bytes).items():
            if (folder / file).exists() or "sw" not in file:
                (folder / file).write_text(str(value), encoding="utf-8")
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise EdgestillError(f"cannot set a memory limit in {folder}: {error.strerror}", NO_GROUP_HINT) from None
    return MemoryGroup(parent.version, folder)


def oom_kills(group: MemoryGroup) -> int:
    """How many processes of the group the system ended because the group was full."""
    file = group.folder / ("memory.events" if group.version == 2 else "memory.oom_control")
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return 0


def remove_group(group: MemoryGroup) -> None:
    """Remove an empty group; one that will not go is left, for it costs nothing."""
    for _ in range(REMOVAL_TRIES):
        try:
            group.folder.rmdir()
            return
        except OSError:
            time.sleep(REMOVAL_WAIT_S)
