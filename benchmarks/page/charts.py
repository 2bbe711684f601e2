"""The pictures of a report: what is drawn, over which axes, in which colours. Draws no line itself."""

from collections.abc import Iterator

from edgestill.benchmarks import plot
from edgestill.benchmarks.page import curves, tables
from edgestill.benchmarks.page.curves import Axis, Series, Spread
from edgestill.benchmarks.plot import FOOT, HEIGHT, LEFT, RIGHT, TOP
from edgestill.benchmarks.report import Report
from edgestill.benchmarks.runs import Calibration
from edgestill.benchmarks.systems import System

HUES = 6  # colours in report.html.jinja
FEWEST_ROWS = 20  # fewer make the start of a risk curve jump
LONG_LEFT = LEFT + 8  # prices are long words beside an axis


def charts(report: Report) -> list[tuple[str, str]]:
    """(caption, svg) of everything that can be drawn; what has no known figure is left out."""
    return [*_scatters(report), *_latencies(report), *_coverage_risk(report), *_cost(report)]


def _scatters(report: Report) -> Iterator[tuple[str, str]]:
    """The judged share against bytes on disk and against p50 latency; none where x is unknown."""
    share = tables.metric_name(report)
    once = {(s.student, s.kind, s.note): s for s in reversed(report.systems)}  # a file is as large on every machine
    size_points = _points(report, {s.name: s.bytes for s in once.values()}, star=False)
    time_points = _points(report, {s.name: s.latency_p50_ms for s in report.systems}, star=True)
    level = _teacher_level(report)
    lacking = " Bases and students in torch are in the table." if len(report.students) > 1 else ""
    better = "Further left and higher is better. Bars are 95 % intervals."
    if size_points:
        svg = plot.scatter(size_points, level, "bytes on disk (log)", f"{share} %", bytes_tick)
        there = " Answers on the first machine that has the file." if len(report.machines) > 1 else ""
        yield f"{share.capitalize()} against size. {better}{there}{lacking}", svg
    if time_points:
        svg = plot.scatter(time_points, level, "p50 latency (log)", f"{share} %", ms_tick)
        star = " * timed when the bundle was built." if any(p.name.endswith("*") for p in time_points) else ""
        yield f"{share.capitalize()} against latency. {better}{star}", svg


def _points(report: Report, xs: dict[str, int | None] | dict[str, float | None], star: bool) -> list[plot.Point]:
    """The systems whose x is known; of several students only what runs on the device, or nobody could read it."""
    several = len(report.students) > 1
    points = []
    for system in report.systems:
        x, y = xs.get(system.name), tables.judged_share(report, system)
        left_out = system.kind == "teacher" or (system.kind in ("base", "student") and several)
        if x and y is not None and not left_out:
            style, shape = _look(report, system)
            points.append(plot.Point(tables.marked(system) if star else system.name, style, x, y, shape))
    return points


def _look(report: Report, system: System) -> tuple[str, str]:
    """(CSS classes, shape) of a system's point: a colour for each student, or for each artifact of a single one."""
    if system.kind in ("floor", "base"):
        return "", "triangle" if system.kind == "floor" else "square"
    if system.kind == "student":
        return "hue0", "circle"
    own = [s.name for s in report.systems if s.kind == "artifact" and s.student == system.student]
    number = own.index(system.name)
    hue = number if len(report.students) == 1 else report.students.index(system.student or "")
    return f"hue{hue % HUES} full", "circle" if number == 0 else "diamond"


def _teacher_level(report: Report) -> plot.Point | None:
    teacher = next(s for s in report.systems if s.kind == "teacher")
    share = tables.judged_share(report, teacher)
    if share is None:
        return None
    return plot.Point(f"teacher {100 * share.value:.1f} %", "teacher", 1.0, share)


def _styles(report: Report) -> dict[str, str]:
    """CSS classes of each run's own colour."""
    return {run.system: f"hue{number % HUES}" for number, run in enumerate(report.runs)}


def _latencies(report: Report) -> Iterator[tuple[str, str]]:
    styles = _styles(report)
    marked = {system.name: tables.marked(system) for system in report.systems}
    spreads = [
        Spread(marked[run.system], styles[run.system], d.p10, d.p25, d.p50, d.p75, d.p90, d.p99)
        for run in report.runs
        if (d := run.latency_ms).p50 is not None
    ]
    if spreads:
        svg = curves.boxes(spreads, "latency of a request (log)", ms_tick)
        yield (
            "Latency distributions: box p25 to p75 with a bar at p50, whiskers p10 to p90, dot p99 (from 299 on).",
            svg,
        )


def _coverage_risk(report: Report) -> Iterator[tuple[str, str]]:
    styles = _styles(report)
    told = [(run.system, run.calibration) for run in report.runs if run.calibration is not None]
    if told:
        highest = max(risk for _, c in told for _, risk in _from_some_rows(c))
        x = Axis("share of the rows answered, %", 0.0, 1.0, False, percent_tick, LEFT, RIGHT)
        top = max(0.05, highest * 1.05)
        y = Axis("of these wrong, %", 0.0, top, False, percent_tick, HEIGHT - FOOT, TOP)
        same: dict[tuple[tuple[float, float], ...], list[str]] = {}  # one bundle answers alike on several devices
        for name, c in told:
            same.setdefault(_from_some_rows(c), []).append(name)
        series = [Series(name, styles[names[0]], points) for points, names in same.items() for name in names]
        caption = f"what is wrong when only the surest rows are answered, from {FEWEST_ROWS} rows on. Lower is better."
        caption += " Names of one colour share a line." if len(same) < len(told) else ""
        yield f"Coverage and risk: {caption}", curves.curves(series, x, y)


def _from_some_rows(calibration: Calibration) -> tuple[tuple[float, float], ...]:
    """The points of the curve, without those that a handful of rows decides, as far as others are left."""
    points = tuple(zip(calibration.coverage, calibration.risk, strict=True))
    return tuple(p for p in points if p[0] * calibration.n >= FEWEST_ROWS) or points


def _cost(report: Report) -> Iterator[tuple[str, str]]:
    each, once = report.cost.teacher_usd_per_1000_requests, report.cost.distillation_usd
    even = report.cost.break_even_requests
    if not each or not once or not even:
        return
    first, last = max(1.0, even / 100), even * 100.0
    low, high = first * each / 1000, last * each / 1000
    x = Axis("requests (log)", first, last, True, count_tick, LONG_LEFT, RIGHT)
    y = Axis("US dollars (log)", low, high, True, usd_tick, HEIGHT - FOOT, TOP)
    series = [
        Series("teacher's API", "", ((first, low), (last, high))),
        Series("student: what it learned from, once", "hue0", ((first, once), (last, once))),
    ]
    svg = curves.curves(series, x, y, (float(even), f"even at {even:,}"))
    yield "Cost of answering so many requests. Work, electricity and the device are not priced.", svg


def bytes_tick(value: float) -> str:
    """Such as "90 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g} B"


def ms_tick(value: float) -> str:
    """Such as "20 ms"."""
    return f"{value / 1e3:g} s" if value >= 1e3 else f"{value:g} ms"


def percent_tick(share: float) -> str:
    """Such as "20"."""
    return f"{round(100 * share, 6):g}"


def count_tick(value: float) -> str:
    """Such as "10k"."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"


def usd_tick(value: float) -> str:
    """Such as "0.1" or "10k"."""
    return count_tick(round(value, 9))
