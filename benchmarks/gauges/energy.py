"""Joules from a source with a name: RAPL counters, a meter on the board, the battery. Never from a data sheet."""

from pathlib import Path
from typing import Protocol

from edgestill.runtime.device import read_text

SYSTEM = Path("/")
# The hwmon drivers whose chips measure what a board takes; others measure one part of it, such as a graphics card.
BOARD_METERS = ("ina",)
RAPL_ZONES = ("package", "dram")  # core and uncore lie within package; psys within none, but holds it


class EnergyMeter(Protocol):
    """Joules since the first sample. Sample at least once a minute: counters wrap, watts are summed over time."""

    source: str
    joules: float

    def sample(self, now_s: float) -> None:
        """Read the source; `now_s` is from one steady clock."""


class RaplMeter:
    """The processor's own counters in microjoules (powercap of the kernel); processor and memory, not the wall."""

    def __init__(self, zones: dict[Path, str]) -> None:
        """`zones` maps each zone's folder to its name."""
        self.source = "rapl: " + ", ".join(zones.values())
        self.joules = 0.0
        self._range_uj = {zone: int(read_text(zone / "max_energy_range_uj") or 0) for zone in zones}
        self._last_uj: dict[Path, int] = {}

    def sample(self, now_s: float) -> None:
        """Add what each counter grew by; one that is smaller than before has wrapped around."""
        del now_s
        for zone, range_uj in self._range_uj.items():
            now_uj = int(read_text(zone / "energy_uj") or self._last_uj.get(zone, 0))
            grown_uj = now_uj - self._last_uj.get(zone, now_uj)
            self.joules += (grown_uj if grown_uj >= 0 else grown_uj + range_uj) / 1e6
            self._last_uj[zone] = now_uj


class PowerMeter:
    """Watts that are read again and again, each reading held to lie half way to its neighbours."""

    def __init__(self, source: str, factors: tuple[Path, ...]) -> None:
        """`factors` are one file in microwatts, or two whose product is power: microamperes and microvolts."""
        self.source = source
        self.joules = 0.0
        self._factors = factors
        self._last: tuple[float, float] | None = None  # (seconds, watts)

    def sample(self, now_s: float) -> None:
        """Add the mean of this reading and the last one over the time between them."""
        watts = 1.0
        for file in self._factors:
            watts *= int(read_text(file) or 0) / 1e6
        if self._last is not None:
            before_s, before_w = self._last
            self.joules += (now_s - before_s) * (watts + before_w) / 2
        self._last = (now_s, watts)


def find_meter(root: Path = SYSTEM) -> EnergyMeter | None:
    """The first source there is of RAPL, a board's meter and a discharging battery; None where there is none.

    RAPL can be read by root alone (CVE-2020-8694).
    """
    return _rapl(root) or _board(root) or _battery(root)


def _rapl(root: Path) -> EnergyMeter | None:
    zones = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = read_text(zone / "name").strip()
        if name.startswith(RAPL_ZONES) and read_text(zone / "energy_uj").strip().isdigit():
            zones[zone] = name
    return RaplMeter(zones) if zones else None


def _board(root: Path) -> EnergyMeter | None:
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(chip / "name").strip()
        if name.startswith(BOARD_METERS) and read_text(chip / "power1_input").strip().isdigit():
            return PowerMeter(f"hwmon: {name} power1_input", (chip / "power1_input",))
    return None


def _battery(root: Path) -> EnergyMeter | None:
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        if (read_text(supply / "type").strip(), read_text(supply / "status").strip()) != ("Battery", "Discharging"):
            continue
        for names in (("power_now",), ("current_now", "voltage_now")):
            if all(read_text(supply / name).strip().isdigit() for name in names):
                return PowerMeter(f"battery: {supply.name} {' x '.join(names)}", tuple(supply / n for n in names))
    return None
