"""The machine at hand as it is, and how a process is started on any machine that the host can start one on."""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO

from edgestill.benchmarks.measurement import Machine
from edgestill.runtime.errors import EdgestillError

STAGE_MODULE = "edgestill.benchmarks.stage"
NOTHING: Mapping[str, str] = MappingProxyType({})


class LocalMachine:
    """Stages as processes of this machine, with this interpreter."""

    facts = Machine(name="local", transport="local")
    lacks: Mapping[str, str] = NOTHING

    def place(self, bundle: Path) -> str:
        """The bundle where it is."""
        return str(bundle.resolve())

    @contextlib.contextmanager
    def stage(self, arguments: Sequence[str]) -> Iterator[Iterator[str]]:
        """Start it; see `DeviceMachine`."""
        with running([sys.executable, "-m", STAGE_MODULE, *arguments], f"the stage {arguments[0]}") as lines:
            yield lines

    def close(self) -> None:
        """Nothing was taken."""


@contextlib.contextmanager
def running(
    command: Sequence[str], called: str, environment: Mapping[str, str] | None = None
) -> Iterator[Iterator[str]]:
    """Lines of stdout of a process that ends with this block, whatever happens in it.

    Args:
        command: program and arguments.
        called: what the process is called in errors.
        environment: all its variables; default: those of this process.

    Raises:
        EdgestillError: it ended with another code than 0; its last line of stderr is in the message.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as talk:
        with _process(command, talk, environment) as process:
            assert process.stdout is not None
            yield iter(process.stdout)
            for _ in process.stdout:  # what was not read would keep it from ending
                pass
        if process.returncode:
            talk.seek(0)
            raise failure(called, process.returncode, talk.read())


def failure(called: str, code: int, talk: str) -> EdgestillError:
    """The error for a process that ended with `code`, below 0 by that signal, after `talk` on stderr."""
    last = (talk.strip().splitlines() or ["no message"])[-1]
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            "SIGKILL is often the system running out of memory" if name == "SIGKILL" else "run the same command again"
        )
        return EdgestillError(f"{called} was ended by {name}: {last}", hint)
    return EdgestillError(f"{called} failed (exit {code}): {last}")


@contextlib.contextmanager
def _process(
    command: Sequence[str], talk: IO[str], environment: Mapping[str, str] | None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=talk, env=environment, text=True, encoding="utf-8", errors="replace"
    )
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
