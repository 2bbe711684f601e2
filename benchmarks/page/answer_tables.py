"""How answers differ: from torch, between machines, from the right label, with how sure they are. Computes nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgestill.benchmarks.flips import Flip
from edgestill.benchmarks.page.tables import UNKNOWN, Table
from edgestill.benchmarks.report import Report
from edgestill.benchmarks.runs import Calibration

SHOWN_FLIPS = 40
SHOWN_CONFUSIONS = 12
MATRIX_LABELS = 20
SHARES = (0.5, 0.8, 1.0)


@dataclass(frozen=True)
class Listing:
    """Rows behind a figure: folded away on the page until asked for."""

    title: str
    table: Table


def parity_table(report: Report) -> Table:
    """One row a run: golden rows and test rows that it answers otherwise than the trained weights, and on which CPU."""
    sites = {site.machine.name: site.device for site in report.machines}
    header = ("system", "instruction sets", "golden rows changed", "largest difference of a probability", "test rows")
    rows = []
    for run in report.runs:
        isa = ", ".join(sites[run.machine].isa) or "none that matter"
        golden = f"{run.golden.labels_changed} of {run.golden.rows}"
        flips = UNKNOWN if run.flips is None else f"{len(run.flips)} of {report.conditions.rows}"
        rows.append((run.system, isa, golden, f"{run.golden.max_probability_difference:.3f}", flips))
    return Table((*header[:-1], "test rows other than in torch"), tuple(rows))


def apart_table(report: Report) -> Table | None:
    """One row a pair of machines that ran one artifact; None without such a pair."""
    rows = [
        (
            one.a,
            one.b,
            f"{len(one.flips)} of {one.rows}",
            UNKNOWN if one.max_probability_difference is None else f"{one.max_probability_difference:.3f}",
        )
        for one in report.apart
    ]
    header = ("here", "there", "rows answered otherwise", "largest difference of a probability")
    return Table(header, tuple(rows)) if rows else None


def flip_listings(report: Report) -> Iterator[Listing]:
    """The rows behind both tables, 40 of each at most; report.json has all."""
    for run in report.runs:
        if run.flips:
            yield _listing(report, f"{run.system}, otherwise than {run.flips_against}", run.flips, "torch", "artifact")
    for one in report.apart:
        if one.flips:
            yield _listing(report, f"{one.a} and {one.b}", one.flips, "here", "there")


def _listing(report: Report, title: str, flips: Sequence[Flip], before: str, after: str) -> Listing:
    more = f", the first {SHOWN_FLIPS}" if len(flips) > SHOWN_FLIPS else ""
    gold = ("gold",) if report.has_gold else ()
    rows = []
    for flip in flips[:SHOWN_FLIPS]:
        right = (flip.gold or "",) if report.has_gold else ()
        rows.append((flip.text, flip.row_id, *right, flip.teacher, flip.before, flip.after))
    count = f"{len(flips)} row{'' if len(flips) == 1 else 's'}"
    return Listing(f"{title}: {count}{more}", Table(("text", "id", *gold, "teacher", before, after), tuple(rows)))


def calibration_table(report: Report) -> Table | None:
    """One row a run whose confidence is known; None without one."""
    found = [(run.system, run.calibration) for run in report.runs if run.calibration is not None]
    if not found:
        return None
    header = ("system", "rows", "calibration error, points", *(f"wrong of the surest {100 * s:.0f} %" for s in SHARES))
    rows = [
        (name, str(c.n), f"{100 * c.error:.1f}", *(f"{100 * risk_at(c, share):.1f} %" for share in SHARES))
        for name, c in found
    ]
    return Table(header, tuple(rows))


def risk_at(calibration: Calibration, share: float) -> float:
    """The risk where at least `share` of the rows are answered."""
    return next(
        risk for coverage, risk in zip(calibration.coverage, calibration.risk, strict=True) if coverage >= share - 1e-9
    )


def confusion_table(report: Report) -> Table | None:
    """The commonest mistakes of every system that has some, the runs' first; None where a row has a set of labels."""
    shown = [run.system for run in report.runs] + (["teacher"] if report.has_gold else [])
    rows = []
    for system in shown:
        wrong = [c for c in report.confusions.get(system, ()) if c.truth != c.said]
        for c in sorted(wrong, key=lambda c: -c.n)[:SHOWN_CONFUSIONS]:
            rows.append((system, c.truth, c.said, str(c.n)))
    return Table(("system", "right", "said", "rows"), tuple(rows)) if rows else None


def matrix_table(report: Report, system: str) -> Table | None:
    """All counts of one system, right labels down and said ones across; None with none or too many labels."""
    cells = {(c.truth, c.said): c.n for c in report.confusions.get(system, ())}
    labels = list(dict.fromkeys((*report.label_names, *(name for pair in cells for name in pair))))
    if not cells or len(labels) > MATRIX_LABELS:
        return None
    rows = [(truth, *(str(cells.get((truth, said), "")) for said in labels)) for truth in labels]
    return Table(("right, said", *labels), tuple(rows))
