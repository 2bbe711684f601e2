"""Lines and boxes as inline SVG, in the manner of plot.py: series over two axes, spreads on one. Knows no report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from edgestill.benchmarks.plot import FOOT, HEIGHT, LEFT, RIGHT, TICK_ROOM, TOP, WIDTH, log_ticks

LEGEND_LINE = 18
BOX_ROW, BOX_NAME = 44, 16
MARGIN = 14
Tick = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A line through `points` (x, y); `style` is its CSS classes."""

    name: str
    style: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Spread:
    """Percentiles of one series, a box from `p25` to `p75` with whiskers; what is None is not drawn."""

    name: str
    style: str
    p10: float | None
    p25: float | None
    p50: float
    p75: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True)
class Axis:
    """From a quantity between `low` and `high` to SVG units between `start` and `end`; `log` wants low > 0."""

    title: str
    low: float
    high: float
    log: bool
    tick: Tick
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value lies."""
        if self.log:
            return self.start + (self.end - self.start) * log10(value / self.low) / log10(self.high / self.low)
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values on the axis."""
        if self.log and len(found := log_ticks(self.low, self.high)) > 2:
            return found
        step = tick_step(self.high - self.low)
        return [i * step for i in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]


def tick_step(extent: float) -> float:
    """Distance of linear ticks: 1, 2 or 5 times a power of ten, at most about six of them."""
    power = 10.0 ** floor(log10(extent / 6))
    return next(s * power for s in (1, 2, 5, 10) if extent / (s * power) <= 6)


def curves(series: Sequence[Series], x: Axis, y: Axis, mark: tuple[float, str] | None = None) -> str:
    """Lines with a legend below, as one <svg> element; `mark` is an x with its name, drawn as an upright line."""
    bottom = HEIGHT - FOOT
    parts = [*_grid(y), *_foot(x, bottom), _side_title(y.title, bottom)]
    for one in series:
        path = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in one.points)
        parts.append(
            f'<polyline class="curve {one.style}" points="{path}"><title>{escape(one.name)}</title></polyline>'
        )
    if mark is not None:
        place = x.place(mark[0])
        anchor = "end" if place > (LEFT + RIGHT) / 2 else "start"
        shift = -6 if anchor == "end" else 6
        parts.append(f'<line class="level" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>')
        where = f'x="{place + shift:.1f}" y="{TOP + 12}" text-anchor="{anchor}"'
        parts.append(f'<text class="teacher" {where}>{escape(mark[1])}</text>')
    for number, one in enumerate(series):
        top = HEIGHT + number * LEGEND_LINE + 8
        parts.append(f'<line class="curve {one.style}" x1="{LEFT}" x2="{LEFT + 24}" y1="{top}" y2="{top}"/>')
        parts.append(f'<text class="name {one.style}" x="{LEFT + 32}" y="{top + 4}">{escape(one.name)}</text>')
    return _svg(parts, HEIGHT + LEGEND_LINE * len(series) + 4, f"{y.title} against {x.title}")


def boxes(spreads: Sequence[Spread], title: str, tick: Tick) -> str:
    """One spread a row on a shared logarithmic axis, its name above it, as one <svg> element."""
    told = [v for s in spreads for v in (s.p10, s.p25, s.p50, s.p75, s.p90, s.p99) if v is not None]
    low, high = min(told), max(told)
    spread = 1.15 if high > 2 * low else 1.6
    x = Axis(title, low / spread, high * spread, True, tick, MARGIN, RIGHT)
    bottom = TOP + BOX_ROW * len(spreads) + 6
    parts = []
    for value in x.ticks():
        place = x.place(value)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>')
    for number, one in enumerate(spreads):
        parts += _box(one, x, TOP + number * BOX_ROW)
    return _svg([*parts, *_foot(x, bottom)], bottom + FOOT, f"{title} by run")


def _box(one: Spread, x: Axis, top: float) -> Iterator[str]:
    """Name, whiskers from p10 to p90, box from p25 to p75, a bar at p50 and a dot at p99."""
    middle = top + BOX_NAME + 12
    yield f'<text class="name {one.style}" x="{MARGIN}" y="{top + 12}">{escape(one.name)}</text>'
    yield f'<g class="mark {one.style}">'
    if one.p10 is not None and one.p90 is not None:
        yield f'<line x1="{x.place(one.p10):.1f}" x2="{x.place(one.p90):.1f}" y1="{middle}" y2="{middle}"/>'
    if one.p25 is not None and one.p75 is not None:
        left, right = x.place(one.p25), x.place(one.p75)
        yield f'<rect x="{left:.1f}" y="{middle - 7}" width="{max(1.0, right - left):.1f}" height="14"/>'
    place = x.place(one.p50)
    yield f'<line class="median" x1="{place:.1f}" x2="{place:.1f}" y1="{middle - 9}" y2="{middle + 9}"/>'
    if one.p99 is not None:
        yield f'<circle cx="{x.place(one.p99):.1f}" cy="{middle}" r="3.5"/>'
    yield "</g>"


def _grid(y: Axis) -> Iterator[str]:
    for value in y.ticks():
        place = y.place(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{escape(y.tick(value))}</text>'


def _foot(x: Axis, bottom: float) -> Iterator[str]:
    yield f'<line class="axis" x1="{x.start}" x2="{RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    for value in x.ticks():
        place = x.place(value)
        yield f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        place, anchor = (place, "middle") if place < RIGHT - TICK_ROOM else (WIDTH, "end")
        where = f'x="{place:.1f}" y="{bottom + 19}" text-anchor="{anchor}"'
        yield f'<text class="tick" {where}>{escape(x.tick(value))}</text>'
    middle = (x.start + RIGHT) / 2
    yield f'<text class="title" x="{middle}" y="{bottom + FOOT - 8}" text-anchor="middle">{escape(x.title)}</text>'


def _side_title(title: str, bottom: float) -> str:
    centre = (TOP + bottom) / 2
    turn = f'transform="rotate(-90 11 {centre})"'
    return f'<text class="title" x="11" y="{centre}" text-anchor="middle" {turn}>{escape(title)}</text>'


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label, quote=True)}">\n{body}\n</svg>'
