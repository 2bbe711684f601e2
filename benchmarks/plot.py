"""Scatter plots as inline SVG: a share with its interval against a quantity on a log axis. Knows no report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from edgestill.runtime.metrics import Estimate

# In SVG units; at the width of a phone one unit is about 0.85 pixels.
WIDTH, HEIGHT = 420, 330
LEFT, RIGHT, TOP, BOTTOM = 42, 410, 12, 278
LETTER_WIDTH, LINE_HEIGHT = 7.9, 15
MARKER = 5.5
NEAR, FAR = 11, 28


@dataclass(frozen=True)
class Point:
    """One system: `x` > 0 in the axis's unit, `y` a share from 0 to 1; `style` is its CSS class and marker."""

    name: str
    style: str
    x: float
    y: Estimate


@dataclass(frozen=True)
class Box:
    """A rectangle, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share any area."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True)
class Scales:
    """From data to SVG units: x by its logarithm, y linear."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Horizontal place of a value > 0."""
        return LEFT + (RIGHT - LEFT) * log10(value / self.x_low) / log10(self.x_high / self.x_low)

    def y(self, share: float) -> float:
        """Vertical place of a share."""
        return BOTTOM - (BOTTOM - TOP) * (share - self.y_low) / (self.y_high - self.y_low)


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
    taken, bars = [_marker_box(p, scales) for p in points], [_bar_box(p, scales) for p in points]
    if line is not None:
        y = scales.y(line.y.value)
        parts += _level(line, scales)
        taken.append(Box(LEFT, y - 1, RIGHT, y + 1))
        parts.append(_place_level_label(line, y, taken, bars))
    for point in points:
        parts.append(_mark(point, scales))
    for point in sorted(points, key=lambda p: (-p.y.value, p.x)):
        parts.append(_place_label(point, scales, taken, bars))
    label = escape(f"{y_title} against {x_title}", quote=True)
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n{body}\n</svg>'


def _scales(points: Sequence[Point], line: Point | None) -> Scales:
    xs = [p.x for p in points]
    shares = [p.y for p in points] + ([line.y] if line else [])
    low, high = min(e.low for e in shares), max(e.high for e in shares)
    step = y_step(high - low)
    y_low, y_high = max(0.0, floor(low / step) * step), min(1.0, ceil(high / step) * step)
    if y_low == y_high:
        y_low, y_high = max(0.0, y_low - step), min(1.0, y_high + step)
    spread = 1.6 if max(xs) > 3 * min(xs) else 3.0
    return Scales(min(xs) / spread, max(xs) * spread, y_low, y_high)


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
    yield f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>'
    for value in log_ticks(scales.x_low, scales.x_high):
        x = scales.x(value)
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{BOTTOM + 19}" text-anchor="middle">{escape(tick(value))}</text>'
    middle = (LEFT + RIGHT) / 2
    yield f'<text class="title" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>'
    centre = (TOP + BOTTOM) / 2
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
        "floor": f'<path d="M{x:.1f} {y - r:.1f} l{r} {2 * r} h{-2 * r} z"/>',
        "base": f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>',
        "artifact1": f'<path d="M{x:.1f} {y - d:.1f} l{d} {d} l{-d} {d} l{-d} {-d} z"/>',
    }
    shape = shapes.get(point.style, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>')
    told = f"{point.name}: {100 * point.y.value:.1f} % [{100 * point.y.low:.1f}, {100 * point.y.high:.1f}]"
    bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
    return f'<g class="mark {point.style}"><title>{escape(told)}</title>{bar}{shape}</g>'


def _marker_box(point: Point, scales: Scales) -> Box:
    x, y, r = scales.x(point.x), scales.y(point.y.value), MARKER + 1
    return Box(x - r, y - r, x + r, y + r)


def _bar_box(point: Point, scales: Scales) -> Box:
    x = scales.x(point.x)
    return Box(x - 2, scales.y(point.y.high), x + 2, scales.y(point.y.low))


def _place_level_label(line: Point, y: float, taken: list[Box], bars: list[Box]) -> str:
    """Text just above or below the level, at the end where nothing lies."""
    width = text_width(line.name)
    places = [(left, top) for top in (y - 3 - LINE_HEIGHT, y + 3) for left in (LEFT + 4, RIGHT - width - 4)]
    left, top = _first_free(places, width, taken, bars)
    taken.append(_text_box(left, top, width))
    return f'<text class="teacher" x="{left:.1f}" y="{top + 12:.1f}">{escape(line.name)}</text>'


def _place_label(point: Point, scales: Scales, taken: list[Box], bars: list[Box]) -> str:
    """The point's name at the nearest free place beside it, with a thin line to it when that is not next to it."""
    x, y, width = scales.x(point.x), scales.y(point.y.value), text_width(point.name)
    left, top = _first_free(list(_places(x, y, width)), width, taken, bars)
    taken.append(_text_box(left, top, width))
    # the edge that faces the point is the text's anchor, so that a guess of its width does no harm
    edge, anchor = (left, "start") if left > x else (left + width, "end")
    leader = ""
    if abs(top + LINE_HEIGHT / 2 - y) > LINE_HEIGHT / 2 or abs(edge - x) > NEAR + 1:
        near = edge - 2 if left > x else edge + 2
        leader = f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near:.1f}" y2="{top + LINE_HEIGHT / 2:.1f}"/>'
    place = f'x="{edge:.1f}" y="{top + 12:.1f}" text-anchor="{anchor}"'
    return f'{leader}<text class="name {point.style}" {place}>{escape(point.name)}</text>'


def _places(x: float, y: float, width: float) -> Iterator[tuple[float, float]]:
    """(left, top) of a label, nearest first: right or left of the point, then higher and lower."""
    for shift in sorted(range(-200, 201, 8), key=abs):
        for gap in (NEAR, FAR):
            yield x + gap, y - LINE_HEIGHT / 2 + shift
            yield x - gap - width, y - LINE_HEIGHT / 2 + shift


def _first_free(
    places: Sequence[tuple[float, float]], width: float, taken: Sequence[Box], bars: Sequence[Box]
) -> tuple[float, float]:
    """The first place that is free; if none is, the first across bars; if none is, the first."""
    for obstacles in ([*taken, *bars], taken):
        for place in places:
            if _free(_text_box(*place, width), obstacles):
                return place
    return places[0]


def _free(box: Box, taken: Sequence[Box]) -> bool:
    inside = box.left >= LEFT + 2 and box.right <= RIGHT and box.top >= TOP - 4 and box.bottom <= BOTTOM - 2
    return inside and not any(box.overlaps(other) for other in taken)


def _text_box(left: float, top: float, width: float) -> Box:
    return Box(left, top, left + width, top + LINE_HEIGHT)


def text_width(text: str) -> float:
    """Upper guess of a label's width in SVG units; the font is the reader's."""
    return LETTER_WIDTH * len(text)
