"""What a machine must offer to be measured on, and the names that `--device` knows. Measures nothing itself."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from edgestill.benchmarks.measurement import Machine
from edgestill.runtime.errors import EdgestillError, UsageError

LOCAL = "local"
KNOWN = "known are: local, constrained:1core,512MB, ssh:HOST, emulated:CORE such as emulated:cortex-a72,rows=40"


class DoesNotFit(EdgestillError):
    """The machine's memory is too small for the stage: an answer, and no fault of the machine."""


class DeviceMachine(Protocol):
    """A machine that runs stages, one process each. Close it when all is measured."""

    facts: Machine
    lacks: Mapping[str, str]  # engines that cannot run there, each with the reason

    def place(self, bundle: Path) -> str:
        """Bring the bundle there, once for each content (sha256); its path as the stages see it.

        Raises:
            EdgestillError: the machine is not reached, or what arrived is not what was sent.
        """

    def stage(self, arguments: Sequence[str]) -> AbstractContextManager[Iterator[str]]:
        """Start `python -m edgestill.benchmarks.stage *arguments` there; its lines of stdout as they come.

        Leaving the block waits for the process, or ends it when the block failed.

        Raises:
            EdgestillError: the process failed; its last line of stderr is in the message.
            DoesNotFit: the system ended it because memory was used up, as a limit counts it or, over ssh, as SIGKILL
                lets one suppose; `local` and `emulated` do not tell it from another failure.
        """

    def close(self) -> None:
        """Give back what was taken: connections, control groups, temporary folders."""


def open_machine(spec: str) -> DeviceMachine:
    """The machine that `--device` names.

    Raises:
        UsageError: a name that is not known, or a limit that cannot be read.
        EdgestillError: the machine is not reached, or cannot hold the limit.
    """
    kind, _, rest = spec.partition(":")
    if spec == LOCAL:
        from edgestill.benchmarks.devices.local import LocalMachine

        return LocalMachine()
    if kind == "constrained" and rest:
        from edgestill.benchmarks.devices.constrained import open_constrained

        return open_constrained(rest)
    if kind == "ssh" and rest:
        from edgestill.benchmarks.devices.ssh import open_ssh

        return open_ssh(rest)
    if kind == "emulated" and rest:
        from edgestill.benchmarks.devices.emulated import open_emulated

        return open_emulated(rest)
    raise UsageError(f"no device is called {spec!r}", KNOWN)


def folder_name(spec: str) -> str:
    """The folder of a report beside the bundle: report for this machine, report-NAME for every other one."""
    return "report" if spec == LOCAL else "report-" + re.sub(r"[^A-Za-z0-9.]+", "-", spec).strip("-.")
