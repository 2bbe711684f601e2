"""What else the machine did: tasks that waited for a processor, time that a host took, processors lost."""

import contextlib
import resource
from pathlib import Path

from edgestill.benchmarks.measurement import Noise
from edgestill.runtime.device import read_text

SYSTEM = Path("/")


class NoiseWatch:
    """Readings from the first sample to the last; what the machine does not tell stays None."""

    def __init__(self, root: Path = SYSTEM) -> None:
        self._root = root
        self._pressures: list[float] = []
        self._loads: list[float] = []
        self._times: list[tuple[int, int]] = []
        self._switches: list[int] = []

    def sample(self) -> None:
        """Read the pressure, the load, the machine's times and this process's switches."""
        for kept, found in (
            (self._pressures, psi_cpu_some_avg10(self._root)),
            (self._loads, load_1min(self._root)),
            (self._times, stolen_and_all_ticks(self._root)),
        ):
            if found is not None:
                kept.append(found)  # type: ignore[arg-type]
        self._switches.append(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)

    def reading(self) -> Noise:
        """What the samples say: the highest pressure and load, and how much the rest grew."""
        return Noise(
            psi_cpu_some_avg10=max(self._pressures, default=None),
            steal_percent=_steal_percent(self._times),
            involuntary_switches=self._switches[-1] - self._switches[0] if self._switches else None,
            load_1min=max(self._loads, default=None),
        )


def psi_cpu_some_avg10(root: Path = SYSTEM) -> float | None:
    """Percent of the last 10 s in which some task waited for a processor (pressure stall)."""
    for word in read_text(root / "proc/pressure/cpu").split():
        if word.startswith("avg10="):
            return float(word.removeprefix("avg10="))
    return None


def load_1min(root: Path = SYSTEM) -> float | None:
    """Tasks that ran or wanted to, averaged over a minute."""
    words = read_text(root / "proc/loadavg").split()
    return float(words[0]) if words else None


def stolen_and_all_ticks(root: Path = SYSTEM) -> tuple[int, int] | None:
    """(ticks in which another guest of the host ran, all ticks) of all processors since the start, proc(5)."""
    with contextlib.suppress(ValueError, IndexError):
        name, *ticks = read_text(root / "proc/stat").partition("\n")[0].split()
        if name == "cpu":
            return int(ticks[7]), sum(map(int, ticks[:8]))  # guest time, which follows, is part of user time
    return None


def _steal_percent(times: list[tuple[int, int]]) -> float | None:
    if len(times) < 2 or times[-1][1] == times[0][1]:
        return None
    return 100 * (times[-1][0] - times[0][0]) / (times[-1][1] - times[0][1])
