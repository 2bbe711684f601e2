"""A machine reached by ssh that needs nothing but python3: the bundle and all else is pushed once, by its hash."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgestill.benchmarks.devices import wheelhouse
from edgestill.benchmarks.devices.connection import SIGNALLED, Connection
from edgestill.benchmarks.devices.machine import DoesNotFit
from edgestill.benchmarks.devices.remote import cache_folder
from edgestill.benchmarks.measurement import Machine
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

KILLED = SIGNALLED + signal.SIGKILL
ROOM_FACTOR = 4  # a parcel lies there as a zip and unpacked, about three times its size, for a moment


class SshMachine:
    """A device behind a connection; see `machine.DeviceMachine`."""

    def __init__(self, name: str, connection: Connection) -> None:
        """Use `open_ssh` instead."""
        self.facts = Machine(name=name, transport="ssh")
        self.lacks: Mapping[str, str] = wheelhouse.lacks(
            wheelhouse.read_platform(connection.facts), connection.facts["modules"]
        )
        self._connection = connection
        self._parcels: list[str] = []

    def place(self, bundle: Path) -> str:
        """Push the bundle's files that are not there; all are hashed there, whether they just arrived or not."""
        files = {path.relative_to(bundle).as_posix(): path for path in sorted(bundle.rglob("*")) if path.is_file()}
        hashes = {name: manifest.sha256_file(path) for name, path in files.items()}
        return self._push(f"bundles/{manifest.sha256_json(hashes)[:16]}", hashes, files)

    def prepare(self) -> None:
        """Push and unpack what the device's python3 lacks."""
        found = wheelhouse.parcels(
            wheelhouse.read_platform(self._connection.facts), self._connection.facts["modules"], cache_folder()
        )
        for sha256 in self._connection.ask("absent", {"parcels": list(found)})["absent"]:
            name = f"{sha256}.zip"
            self._must_fit(ROOM_FACTOR * found[sha256].stat().st_size, self._connection.facts["free_bytes"])
            self._push("parcels", {name: sha256}, {name: found[sha256]})
            self._connection.ask("unpack", {"sha256": sha256})
        self._parcels = list(found)

    @contextmanager
    def stage(self, arguments: Sequence[str]) -> Iterator[Iterator[str]]:
        """Run one stage there; leaving the block early ends it and all that it started.

        Raises:
            EdgestillError: the connection was lost, another benchmark is at work there, the stage failed.
            DoesNotFit: SIGKILL ended it, which is how Linux takes memory back; who sent it is not told.
        """
        self._connection.must_stand()
        with self._connection.start("stage", {"arguments": list(arguments), "parcels": self._parcels}) as there:
            there.beat()
            lines = there.lines()
            yield lines
            for _ in lines:  # what was not read would keep it from ending
                pass
            code = there.wait()
            if code == KILLED:
                raise DoesNotFit(
                    f"was ended by SIGKILL, most likely for memory (the stage {arguments[0]} on {self.facts.name})",
                    "stop what else runs there, or build a smaller student",
                )
            if code != 0:
                raise there.failure(code)

    def close(self) -> None:
        """Give the device back."""
        self._connection.close()

    def _push(self, folder: str, hashes: Mapping[str, str], files: Mapping[str, Path]) -> str:
        """Push what is missing, from the byte on that is missing, and see that all is there."""
        wanted = {"folder": folder, "files": dict(hashes)}
        there = self._connection.ask("missing", wanted)
        rest = sum(files[name].stat().st_size - offset for name, offset in there["missing"].items())
        self._must_fit(rest, there["free_bytes"])
        for name, offset in there["missing"].items():
            size = files[name].stat().st_size
            asked = {"folder": folder, "path": name, "sha256": hashes[name], "bytes": size, "offset": min(offset, size)}
            if not self._connection.send(asked, files[name]):
                self._connection.send({**asked, "offset": 0}, files[name])
        broken = self._connection.ask("missing", wanted)["missing"] if there["missing"] else {}
        if broken:
            raise EdgestillError(
                f"{self.facts.name}: {next(iter(broken))} did not arrive as it was sent", "run the same command"
            )
        return str(there["folder"])

    def _must_fit(self, needed_bytes: int, free_bytes: int) -> None:
        if needed_bytes > free_bytes:
            raise EdgestillError(
                f"{self.facts.name}: {needed_bytes // 1_000_000} MB do not fit into the"
                f" {free_bytes // 1_000_000} MB that are free there",
                "make room there",
            )


def open_ssh(host: str, client: Sequence[str] = ("ssh",)) -> SshMachine:
    """Connect to a device, lock it, and bring it what its python3 lacks.

    Args:
        host: as one types after `ssh`.
        client: the ssh client and options that come first.

    Raises:
        EdgestillError: the device is not reached, is locked or full, or lacks what has no wheel for it.
    """
    machine = SshMachine(f"ssh:{host}", Connection(host, client))
    try:
        machine.prepare()
    except BaseException:
        machine.close()
        raise
    return machine
