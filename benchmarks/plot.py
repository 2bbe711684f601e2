"""Scatter plots as inline SVG: a share with its interval against a quantity on a log axis. Knows no report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from edgestill.benchmarks.labels import Box, Labels
from edgestill.runtime.metrics import Estimate

# In SVG units; at the width of a phone one unit is about 0.85 pixels. More points make the plot higher, to read them.
WIDTH, HEIGHT = 420, 330
LEFT, RIGHT, TOP, FOOT = 42, 410, 12, 52
FEW_POINTS, HEIGHT_PER_POINT = 6, 22
MARKER = 5.5
TICK_ROOM = 14  # what half a tick's text wants beside the last tick


@dataclass(frozen=True)
class Point:
    """One system: `x` > 0 in the axis's unit, `y` a share from 0 to 1.

    `style` is its CSS classes; `shape` is circle, diamond, square or triangle.
    """

    name: str
    style: str
    x: float
    y: Estimate
    shape: str = "circle"


@dataclass(frozen=True)
class Scales:
    """From data to SVG units: x by its logarithm, y linear; `bottom` is the place of the x axis."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    bottom: float

    def x(self, value: float) -> float:
        """Horizontal place of a value > 0."""
        return LEFT + (RIGHT - LEFT) * log10(value / self.x_low) / log10(self.x_high / self.x_low)

    def y(self, share: float) -> float:
        """Vertical place of a share."""
        return self.bottom - (self.bottom - TOP) * (share - self.y_low) / (self.y_high - self.y_low)


def scatter(
    points: Sequence[Point], line: Point | None, x_title: str, y_title: str, tick: Callable[[float], str]
) -> str:
    """The plot as one <svg> element.

    Args:
        points: at least one.
        line: a system without an x, drawn as a dashed level with its interval as a band.
        x_title: name and unit of the x axis.
        y_title: name of the share.
        tick: text of an x value.
    """
    scales = _scales(points, line)
    parts = [*_axes(scales, x_title, y_title, tick)]
    area = Box(LEFT + 2, TOP - 4, RIGHT, scales.bottom - 2)
    labels = Labels(area, [_marker_box(p, scales) for p in points], [_bar_box(p, scales) for p in points])
    if line is not None:
        parts += _level(line, scales)
        place = labels.along(scales.y(line.y.value), line.name)
        parts.append(f'<text class="teacher" x="{place.left:.1f}" y="{place.top + 12:.1f}">{escape(line.name)}</text>')
    for point in points:
        parts.append(_mark(point, scales))
    for point in sorted(points, key=lambda p: (-p.y.value, p.x)):
        parts.append(_label(point, scales, labels))
    label = escape(f"{y_title} against {x_title}", quote=True)
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {scales.bottom + FOOT}" role="img" aria-label="{label}">\n{body}\n</svg>'


def _scales(points: Sequence[Point], line: Point | None) -> Scales:
    xs = [p.x for p in points]
    shares = [p.y for p in points] + ([line.y] if line else [])
    low, high = min(e.low for e in shares), max(e.high for e in shares)
    step = y_step(high - low)
    y_low, y_high = max(0.0, floor(low / step) * step), min(1.0, ceil(high / step) * step)
    if y_low == y_high:
        y_low, y_high = max(0.0, y_low - step), min(1.0, y_high + step)
    spread = 1.6 if max(xs) > 3 * min(xs) else 3.0
    height = HEIGHT + HEIGHT_PER_POINT * max(0, len(points) - FEW_POINTS)
    return Scales(min(xs) / spread, max(xs) * spread, y_low, y_high, height - FOOT)


def y_step(extent: float) -> float:
    """Distance of the y ticks for a range of shares: at most about eight ticks."""
    return next(step for step in (0.02, 0.05, 0.1, 0.2) if extent / step <= 8 or step == 0.2)


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between `low` and `high`: 1-2-5 steps when the range is short, else powers of ten."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(found) <= 6:
            return found
    return found[:: ceil(len(found) / 6)]


def _axes(scales: Scales, x_title: str, y_title: str, tick: Callable[[float], str]) -> Iterator[str]:
    step = y_step(scales.y_high - scales.y_low)
    for number in range(round((scales.y_high - scales.y_low) / step) + 1):
        share = scales.y_low + number * step
        y = scales.y(share)
        yield f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f}</text>'
    bottom = scales.bottom
    yield f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    for value in log_ticks(scales.x_low, scales.x_high):
        x = scales.x(value)
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        x, anchor = (x, "middle") if x < RIGHT - TICK_ROOM else (WIDTH, "end")
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 19}" text-anchor="{anchor}">{escape(tick(value))}</text>'
    middle = (LEFT + RIGHT) / 2
    yield f'<text class="title" x="{middle}" y="{bottom + FOOT - 8}" text-anchor="middle">{escape(x_title)}</text>'
    centre = (TOP + bottom) / 2
    yield (
        f'<text class="title" x="11" y="{centre}" text-anchor="middle" transform="rotate(-90 11 {centre})">'
        f"{escape(y_title)}</text>"
    )


def _level(line: Point, scales: Scales) -> list[str]:
    top, bottom, y = scales.y(line.y.high), scales.y(line.y.low), scales.y(line.y.value)
    return [
        f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{RIGHT - LEFT}" height="{bottom - top:.1f}"/>',
        f'<line class="level" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
    ]


def _mark(point: Point, scales: Scales) -> str:
    """Interval bar and marker, with the numbers as a tooltip."""
    x, r = scales.x(point.x), MARKER
    y, top, bottom = (scales.y(share) for share in (point.y.value, point.y.high, point.y.low))
    d = r + 1.5
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        "triangle": f'<path d="M{x:.1f} {y - r:.1f} l{r} {2 * r} h{-2 * r} z"/>',
        "square": f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>',
        "diamond": f'<path d="M{x:.1f} {y - d:.1f} l{d} {d} l{-d} {d} l{-d} {-d} z"/>',
    }
    told = f"{point.name}: {100 * point.y.value:.1f} % [{100 * point.y.low:.1f}, {100 * point.y.high:.1f}]"
    bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
    return f'<g class="mark {point.style}"><title>{escape(told)}</title>{bar}{shapes[point.shape]}</g>'


def _marker_box(point: Point, scales: Scales) -> Box:
    x, y, r = scales.x(point.x), scales.y(point.y.value), MARKER + 1
    return Box(x - r, y - r, x + r, y + r)


def _bar_box(point: Point, scales: Scales) -> Box:
    x = scales.x(point.x)
    return Box(x - 2, scales.y(point.y.high), x + 2, scales.y(point.y.low))


def _label(point: Point, scales: Scales, labels: Labels) -> str:
    """The point's name, with a thin line to it when that is not next to it."""
    place = labels.beside(scales.x(point.x), scales.y(point.y.value), point.name)
    leader = ""
    if place.leader is not None:
        x1, y1, x2, y2 = place.leader
        leader = f'<line class="leader" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    where = f'x="{place.x:.1f}" y="{place.top + 12:.1f}" text-anchor="{place.anchor}"'
    return f'{leader}<text class="name {point.style}" {where}>{escape(place.text)}</text>'
