"""Gate: one promise of a build with the figure that was measured and the threshold it was held against.

Every figure is one that should be small, so that all gates read alike: passed means figure <= threshold.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgestill.runtime.errors import GateFailed


@dataclass(frozen=True)
class Gate:
    """One promise: `figure` and `threshold` are in `unit`; no number (NaN) never passes."""

    name: str
    figure: float
    threshold: float
    unit: str
    passed: bool


def at_most(name: str, figure: float, threshold: float, unit: str) -> Gate:
    """The gate that passes where `figure` is at most `threshold`."""
    return Gate(name, float(figure), float(threshold), unit, bool(figure <= threshold))


def require(gates: Iterable[Gate], hint: str) -> list[Gate]:
    """The gates, all of them passed; `hint` says what to type where one has not.

    Raises:
        GateFailed: the first that has not, with its figure and its threshold.
    """
    done = list(gates)
    for gate in done:
        if not gate.passed:
            found = f"{_number(gate.figure)} {gate.unit}".rstrip()
            raise GateFailed(f"gate {gate.name}: found {found}, wanted at most {_number(gate.threshold)}", hint)
    return done


def gate_lines(parity: Mapping[str, Any]) -> list[str]:
    """One line a gate out of what a bundle's manifest holds; none for a bundle that was built without."""
    return [
        f"{'ok' if gate['passed'] else 'FAILED':<6}  {gate['name']}: {_number(gate['figure'])} {gate['unit']}, "
        f"at most {_number(gate['threshold'])}"
        for gate in parity.get("gates", ())
    ]


def gate_table(gates: Iterable[Gate]) -> str:
    """The gates as a table in Markdown."""
    rows = [f"| {g.name} | {_number(g.figure)} {g.unit} | {_number(g.threshold)} |" for g in gates]
    return "\n".join(["| Gate | Measured | At most |", "|---|---|---|", *rows])


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2g}"
