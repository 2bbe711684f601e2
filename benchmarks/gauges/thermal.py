"""How hot the machine is, how fast its processors run, and whether it slowed itself down."""

from collections.abc import Sequence
from pathlib import Path

from edgestill.benchmarks.measurement import Thermal
from edgestill.runtime.device import read_text

SYSTEM = Path("/")
# Bits of the Raspberry Pi's firmware: under-voltage, frequency capped, throttled, soft temperature limit; now.
PI_THROTTLED_NOW = 0b1111
PI_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
# The hwmon drivers of processors, for machines whose thermal zones are silent.
PROCESSOR_CHIPS = ("coretemp", "k10temp", "cpu_thermal", "zenpower")


class ThermalWatch:
    """Readings from the first sample to the last; what the machine does not tell stays None."""

    def __init__(self, root: Path = SYSTEM) -> None:
        self._root = root
        self._celsius: list[float] = []
        self._clocks: list[float] = []
        self._events: list[float] = []
        self._states: list[float] = []

    def sample(self) -> None:
        """Read the hottest zone, the busiest core's clock and the events of throttling."""
        for kept, found in (
            (self._celsius, hottest_c(self._root)),
            (self._clocks, fastest_clock(self._root)),
            (self._events, throttle_events(self._root)),
            (self._states, throttled_now(self._root)),
        ):
            if found is not None:
                kept.append(found)

    def reading(self) -> Thermal:
        """What the samples say; the drift of latencies is not known here."""
        told = bool(self._events or self._states)
        grew = max(self._events, default=0) > min(self._events, default=0)
        return Thermal(
            start_c=self._celsius[0] if self._celsius else None,
            max_c=max(self._celsius, default=None),
            end_c=self._celsius[-1] if self._celsius else None,
            lowest_frequency=min(self._clocks, default=None),
            throttled=(grew or any(self._states)) if told else None,
            drift=None,
        )


def hottest_c(root: Path = SYSTEM) -> float | None:
    """Degrees of the hottest thermal zone, or of the hottest sensor in a processor's chip where there is no zone."""
    zones = _numbers(sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")))
    if not zones:
        chips = [chip for chip in (root / "sys/class/hwmon").glob("hwmon*") if _is_processor(chip)]
        zones = _numbers([file for chip in chips for file in sorted(chip.glob("temp*_input"))])
    return max(zones) / 1000 if zones else None


def fastest_clock(root: Path = SYSTEM) -> float | None:
    """The clock of the fastest core now, the one at work, as a share of the highest that it can have."""
    shares = []
    for core in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"):
        now, highest = _numbers([core / "scaling_cur_freq"]), _numbers([core / "cpuinfo_max_freq"])
        if now and highest:
            shares.append(now[0] / highest[0])
    return max(shares, default=None)


def throttle_events(root: Path = SYSTEM) -> float | None:
    """How often the processor slowed itself down since the machine started, as Intel's counters tell it."""
    counts = _numbers(sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")))
    return sum(counts) if counts else None


def throttled_now(root: Path = SYSTEM) -> bool | None:
    """Whether a Raspberry Pi holds itself back at this moment."""
    flags = read_text(root / PI_FIRMWARE).strip()
    return bool(int(flags, 16) & PI_THROTTLED_NOW) if flags else None


def _is_processor(chip: Path) -> bool:
    return read_text(chip / "name").strip() in PROCESSOR_CHIPS


def _numbers(files: Sequence[Path]) -> list[float]:
    texts = [read_text(file).strip() for file in files]
    return [float(text) for text in texts if text.lstrip("-").isdigit()]
