"""Where the names of a plot's points go, so that no two lie on each other. Draws nothing and knows no scale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot

# In SVG units, as everything here.
LETTER_WIDTH, LINE_HEIGHT = 7.9, 15
GAPS = (11, 28, 56, 90)
SHIFT = 8
OWN_MARKER = 10
MAX_LETTERS, LAST_LETTERS = 26, 8


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
class Place:
    """A label's text, `width` wide by an upper guess, from `left` on below `top`.

    `anchor` is the side that faces its point, start, middle or end: from there it is drawn, so that a guess of its
    width does no harm. `leader` are the ends x1, y1, x2, y2 of a thin line to the point, None for a label next to it.
    """

    text: str
    left: float
    top: float
    width: float
    anchor: str
    leader: tuple[float, float, float, float] | None

    @property
    def x(self) -> float:
        """Where the anchor is."""
        return self.left + {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * self.width

    @property
    def box(self) -> Box:
        """The room that the text takes."""
        return Box(self.left, self.top, self.left + self.width, self.top + LINE_HEIGHT)


class Labels:
    """The room inside `area` that is left between markers and the names placed so far.

    No name lies on a marker or on another name; bars and leaders are crossed only where there is no other way.
    """

    def __init__(self, area: Box, marks: Sequence[Box], bars: Sequence[Box]) -> None:
        """Start with the markers and interval bars of all points."""
        self._area = area
        self._marks = list(marks)
        self._bars = list(bars)
        self._texts: list[Box] = []
        self._leaders: list[Box] = []

    def along(self, y: float, name: str) -> Place:
        """A name just above or below a line across the whole area, at the end where nothing lies."""
        self._marks.append(Box(self._area.left, y - 1, self._area.right, y + 1))
        width = text_width(name)
        ends = (self._area.left + 2, self._area.right - width - 4)
        places = [(left, top) for top in (y - 3 - LINE_HEIGHT, y + 3) for left in ends]
        return self._take([Place(name, left, top, width, "start", None) for left, top in places])

    def beside(self, x: float, y: float, name: str) -> Place:
        """A name at the nearest free place beside a point, cut when it is long."""
        return self._take(list(_places(x, y, short_name(name), self._area)))

    def _take(self, places: Sequence[Place]) -> Place:
        chosen = self._first_free(places)
        self._texts.append(chosen.box)
        self._leaders += _steps(chosen.leader)
        return chosen

    def _first_free(self, places: Sequence[Place]) -> Place:
        """The first place free of everything; else the first across bars, then across leaders; else the first."""
        solid = [*self._marks, *self._texts]
        # (what the text keeps off, what its leader keeps off)
        for off_text, off_leader in (
            ([*solid, *self._bars, *self._leaders], solid),
            ([*solid, *self._leaders], solid),
            (solid, self._texts),
            (solid, []),
        ):
            for place in places:
                free = self._inside(place.box) and not _meets(place.box, off_text)
                if free and not any(_meets(step, off_leader) for step in _steps(place.leader)):
                    return place
        return places[0]

    def _inside(self, box: Box) -> bool:
        across = box.left >= self._area.left and box.right <= self._area.right
        return across and box.top >= self._area.top and box.bottom <= self._area.bottom


def _meets(box: Box, others: Sequence[Box]) -> bool:
    return any(box.overlaps(other) for other in others)


def _places(x: float, y: float, text: str, area: Box) -> Iterator[Place]:
    """Right and left of the point, and above and below it, the nearest first."""
    width, reach = text_width(text), round(area.bottom - area.top)
    shifts = range(-reach // SHIFT * SHIFT, reach, SHIFT)
    for gap, shift in sorted(((gap, shift) for gap in GAPS for shift in shifts), key=lambda move: hypot(*move)):
        top, middle = y - LINE_HEIGHT / 2 + shift, y + shift
        near = gap == GAPS[0] and abs(shift) <= LINE_HEIGHT / 2
        yield Place(text, x + gap, top, width, "start", None if near else (x, y, x + gap - 2, middle))
        yield Place(text, x - gap - width, top, width, "end", None if near else (x, y, x - gap + 2, middle))
        if gap == GAPS[0] and abs(shift) > LINE_HEIGHT:
            left = min(max(x - width / 2, area.left), area.right - width)
            end = middle + (-LINE_HEIGHT / 2 if shift > 0 else LINE_HEIGHT / 2)
            yield Place(text, left, top, width, "middle", (x, y, left + width / 2, end))


def _steps(leader: tuple[float, float, float, float] | None) -> list[Box]:
    """A leader as a chain of small boxes, without its first bit, which lies on the point's own marker."""
    if leader is None:
        return []
    x1, y1, x2, y2 = leader
    length = hypot(x2 - x1, y2 - y1)
    shares = [(OWN_MARKER + 3 * i) / length for i in range(int((length - OWN_MARKER) / 3) + 1) if length]
    along = [(x1 + (x2 - x1) * share, y1 + (y2 - y1) * share) for share in shares]
    return [Box(x - 1, y - 1, x + 1, y + 1) for x, y in along]


def short_name(name: str) -> str:
    """A name whose first word loses its middle when the whole is too long to stand beside a point."""
    first, blank, rest = name.partition(" ")
    kept = MAX_LETTERS - len(blank + rest) - 1
    if len(name) <= MAX_LETTERS:
        return name
    if kept <= LAST_LETTERS:
        return f"{name[: MAX_LETTERS - LAST_LETTERS - 1]}…{name[-LAST_LETTERS:]}"
    return f"{first[: kept - LAST_LETTERS]}…{first[-LAST_LETTERS:]}{blank}{rest}"


def text_width(text: str) -> float:
    """Upper guess of a label's width; the font is the reader's."""
    return LETTER_WIDTH * len(text)
