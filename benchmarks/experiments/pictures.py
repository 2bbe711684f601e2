"""An experiment's two pictures: what the students get right against rows learnt from and against teacher tokens."""

import dataclasses
from collections.abc import Iterator, Sequence
from math import log10

from edgestill.benchmarks import plot
from edgestill.benchmarks.experiments.result import ArmResult, ExperimentResult

# The report's colours; a picture stands alone, so it brings its own page and follows the reader's light or dark.
HUES = ("#0b62c4", "#b3470b", "#7a3db8", "#0a7a74", "#b0256b", "#6b6a00")
DARK_HUES = ("#6db3ff", "#ff9d5c", "#c39bff", "#4fd0c6", "#ff8dc0", "#d2cf4f")
MARGIN = 1.6  # what `plot` leaves left and right of the points, as a factor
APART = 5  # units of the plot between two bars
SHAPES = ("circle", "diamond", "square")
STYLE = """svg { --page: #fdfdfc; --ink: #1b1f24; --soft: #59626d; --rule: #d9dde2; background: var(--page); %s }
@media (prefers-color-scheme: dark) {
  svg { --page: #14171a; --ink: #e6e8ea; --soft: #a3abb5; --rule: #343a41; %s }
}
text { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; fill: var(--ink); }
.tick, .title, .teacher { fill: var(--soft); } .grid { stroke: var(--rule); } .axis { stroke: var(--soft); }
.leader { stroke: var(--soft); stroke-width: .8; } .band { fill: var(--soft); opacity: .12; }
.level { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
%s
.mark { stroke: var(--hue, var(--soft)); fill: var(--page); stroke-width: 1.8; }
.mark.full { fill: var(--hue, var(--soft)); }
.name { font-weight: 600; fill: var(--hue, var(--soft)); }"""


def pictures(result: ExperimentResult) -> dict[str, str | None]:
    """The text of each svg by its file's name; None where no arm has the horizontal figure."""
    tokens = {arm.name: arm.teacher_tokens for arm in result.arms}
    rows: dict[str, float | None] = {arm.name: arm.rows_learnt_from for arm in result.arms}
    return {
        "accuracy-by-rows.svg": _picture(result, rows, "rows learnt from (log)"),
        "accuracy-by-teacher-tokens.svg": _picture(result, tokens, "teacher tokens (log)"),
    }


def _picture(result: ExperimentResult, xs: dict[str, float | None], title: str) -> str | None:
    points = side_by_side(list(_points(result, xs)))
    if not points:
        return None
    y_title = "accuracy %" if result.metric == "gold" else "agreement with the teacher %"
    return standalone(plot.scatter(points, None, title, y_title, _tick))


def _points(result: ExperimentResult, xs: dict[str, float | None]) -> Iterator[plot.Point]:
    """The arms whose x is known and above 0; a control is a grey triangle."""
    for number, arm in enumerate(arm for arm in result.arms if not arm.is_control):
        yield from _point(arm, xs, f"hue{number % len(HUES)}", SHAPES[number // len(HUES) % len(SHAPES)])
    for arm in result.arms:
        if arm.is_control:
            yield from _point(arm, xs, "control", "triangle")


def _point(arm: ArmResult, xs: dict[str, float | None], style: str, shape: str) -> Iterator[plot.Point]:
    x = xs[arm.name]
    if x:
        yield plot.Point(arm.name, style, x, arm.accuracy, shape)


def side_by_side(points: Sequence[plot.Point]) -> list[plot.Point]:
    """The points in the same order, those with almost the same x moved apart, or their bars would hide each other.

    Arms that a budget makes equal have equal x: they are centred on it, `APART` units of the plot from each other.
    """
    if not points:
        return []
    logs = [log10(point.x) for point in points]
    step = APART / (plot.RIGHT - plot.LEFT) * (max(logs) - min(logs) + 2 * log10(MARGIN))
    moved = [*logs]
    crowd: list[int] = []
    for place in [*sorted(range(len(points)), key=lambda i: logs[i]), None]:
        if place is not None and (not crowd or logs[place] - logs[crowd[-1]] < step):
            crowd.append(place)
            continue
        middle = sum(logs[i] for i in crowd) / len(crowd)
        for number, i in enumerate(crowd):
            moved[i] = middle + step * (number - (len(crowd) - 1) / 2) if len(crowd) > 1 else logs[i]
        crowd = [place] if place is not None else []
    return [dataclasses.replace(point, x=10**log) for point, log in zip(points, moved, strict=True)]


def standalone(svg: str) -> str:
    """A plot as a file of its own, with its name space and its style."""
    light, dark = (" ".join(f"--hue{i}: {hue};" for i, hue in enumerate(hues)) for hues in (HUES, DARK_HUES))
    classes = "\n".join(f".hue{i} {{ --hue: var(--hue{i}); }}" for i in range(len(HUES)))
    style = f"<style>{STYLE % (light, dark, classes)}</style>"
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1) + "\n"


def _tick(value: float) -> str:
    """Such as 500, 20k, 3M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
