"""Joules from a source with a name: RAPL counters, a meter on the board, the battery. Never from a data sheet."""

from pathlib import Path
from typing import Protocol

from edgestill.runtime.device import read_text

SYSTEM = Path("/")
DISCHARGING = "Discharging"
# The hwmon drivers whose chips measure what a board takes; others measure one part of it, such as a graphics card.
BOARD_METERS = ("ina",)
RAPL_ZONES = ("package", "dram")  # core and uncore lie within package; psys within none, but holds it


class EnergyMeter(Protocol):
    """Joules since the first sample, None for good once a reading was no number or the source no longer tells all.

    Sample at least once a minute: counters wrap, watts are summed over time.
    """

    source: str
    joules: float | None

    def sample(self, now_s: float) -> None:
        """Read the source; `now_s` is from one steady clock."""


class RaplMeter:
    """The processor's own counters in microjoules (powercap of the kernel); processor and memory, not the wall."""

    def __init__(self, zones: dict[Path, str]) -> None:
        """`zones` maps each zone's folder to its name."""
        self.source = "rapl: " + ", ".join(zones.values())
        self.joules: float | None = 0.0
        self._range_uj = {zone: _number(zone / "max_energy_range_uj") for zone in zones}
        self._last_uj: dict[Path, int] = {}

    def sample(self, now_s: float) -> None:
        """Add what each counter grew by; one that is smaller than before has wrapped around."""
        del now_s
        for zone, range_uj in self._range_uj.items():
            now_uj = _number(zone / "energy_uj")
            grown_uj = None if now_uj is None else now_uj - self._last_uj.get(zone, now_uj)
            if grown_uj is not None and grown_uj < 0:
                grown_uj = None if range_uj is None else grown_uj + range_uj
            if self.joules is None or now_uj is None or grown_uj is None:
                self.joules = None
                return
            self.joules += grown_uj / 1e6
            self._last_uj[zone] = now_uj


class PowerMeter:
    """Watts that are read again and again, each reading held to lie half way to its neighbours."""

    def __init__(self, source: str, factors: tuple[Path, ...], status: Path | None = None) -> None:
        """`factors` are one file in microwatts, or two whose product is power: microamperes and microvolts.

        `status` is a battery's: its watts are the machine's only while it says DISCHARGING.
        """
        self.source = source
        self.joules: float | None = 0.0
        self._factors = factors
        self._status = status
        self._last: tuple[float, float] | None = None  # (seconds, watts)

    def sample(self, now_s: float) -> None:
        """Add the mean of this reading and the last one over the time between them."""
        watts = self._watts()
        if self.joules is None or watts is None:
            self.joules = None
            return
        if self._last is not None:
            before_s, before_w = self._last
            self.joules += (now_s - before_s) * (watts + before_w) / 2
        self._last = (now_s, watts)

    def _watts(self) -> float | None:
        if self._status is not None and read_text(self._status).strip() != DISCHARGING:
            return None
        watts = 1.0
        for file in self._factors:
            number = _number(file)
            if number is None:
                return None
            watts *= number / 1e6
        return watts


def find_meter(root: Path = SYSTEM) -> EnergyMeter | None:
    """The first source there is of RAPL, a board's meter and a discharging battery; None where there is none.

    RAPL can be read by root alone (CVE-2020-8694).
    """
    return _rapl(root) or _board(root) or _battery(root)


def _rapl(root: Path) -> EnergyMeter | None:
    zones = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = read_text(zone / "name").strip()
        if name.startswith(RAPL_ZONES) and _number(zone / "energy_uj") is not None:
            zones[zone] = name
    return RaplMeter(zones) if zones else None


def _board(root: Path) -> EnergyMeter | None:
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(chip / "name").strip()
        if name.startswith(BOARD_METERS) and _number(chip / "power1_input") is not None:
            return PowerMeter(f"hwmon: {name} power1_input", (chip / "power1_input",))
    return None


def _battery(root: Path) -> EnergyMeter | None:
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        status = supply / "status"
        if (read_text(supply / "type").strip(), read_text(status).strip()) != ("Battery", DISCHARGING):
            continue
        for names in (("power_now",), ("current_now", "voltage_now")):
            if all(_number(supply / name) is not None for name in names):
                source = f"battery: {supply.name} {' x '.join(names)}"
                return PowerMeter(source, tuple(supply / name for name in names), status)
    return None


def _number(file: Path) -> int | None:
    text = read_text(file).strip()
    return int(text) if text.isdecimal() else None
