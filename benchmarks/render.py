"""A report as Markdown, as one HTML file and as text for a terminal. Writes no file and computes no statistic."""

import textwrap
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from edgestill.benchmarks import plot, set_tables, tables
from edgestill.benchmarks.report import Report, System
from edgestill.runtime.metrics import Estimate

TERMINAL_COLUMNS = 110
HUES = 6  # colours in report.html.jinja


def markdown(report: Report) -> str:
    """The text of report.md."""
    environment = _environment(autoescape=False)
    environment.filters["cell"] = _markdown_cell
    return environment.get_template("report.md.jinja").render(_view(report))


def html(report: Report) -> str:
    """The text of report.html: no script, nothing fetched, readable in light and dark and on a phone."""
    view = _view(report)
    return _environment(autoescape=True).get_template("report.html.jinja").render(view, plots=plots(report))


def terminal_table(report: Report) -> str:
    """The choice, the main table and the verdicts on the main artifact in at most 110 columns, without colour."""
    table = _terminal_cells(report)
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    widths[0] = min(widths[0], TERMINAL_COLUMNS - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in (table.header, *table.rows)]
    lines.insert(1, "  ".join("-" * width for width in widths))
    choice = textwrap.wrap(tables.choice_sentence(report), TERMINAL_COLUMNS, subsequent_indent="  ")
    first = [*choice, ""] if choice else []
    told = [textwrap.fill(line, TERMINAL_COLUMNS, subsequent_indent="  ") for _, line in telling_verdicts(report)]
    if any(row[0].endswith("*") for row in table.rows):
        lines.append("* time and memory as taken when the bundle was built")
    if report.conditions.contended:
        lines.append(tables.contention_note(report))
    return "\n".join([*first, *lines, "", *told])


def main_artifact(report: Report) -> System:
    """The artifact that a report speaks of first.

    Of one student its first artifact; of several the chosen one, or the best artifact when the floor was chosen.
    """
    artifacts = [s for s in report.systems if s.kind == "artifact"]
    if len(report.students) == 1:
        return artifacts[0]
    chosen = [s for s in artifacts if report.choice is not None and s.name == report.choice.chosen]
    return (chosen or sorted(artifacts, key=lambda s: -_judged_value(report, s)))[0]


def _judged_value(report: Report, system: System) -> float:
    share = tables.judged_share(report, system)
    return 0.0 if share is None else share.value


def telling_verdicts(report: Report) -> list[tuple[str, str]]:
    """(outcome, sentence) of every comparison; with several students of those of the main artifact alone."""
    main, alone = main_artifact(report).name, len(report.students) == 1
    told = zip(report.comparisons, verdicts(report), strict=True)
    return [(c.outcome, said) for c, said in told if alone or c.a == main]


def verdicts(report: Report) -> list[str]:
    """The comparisons as sentences, those of the first artifact first."""
    return [f"{c.verdict[0].upper()}{c.verdict[1:]}." for c in report.comparisons]


def headline(report: Report, main: System) -> str:
    """What the main artifact is worth: against the floor and against the teacher, as far as they were compared."""
    told = [(c.b, said) for c, said in zip(report.comparisons, verdicts(report), strict=True) if c.a == main.name]
    telling = [said for opponent, said in told if opponent in ("floor", "teacher")]
    return " ".join(
        telling
        or [said for _, said in told[:1]]
        or [f"The {main.name} was measured; there is nothing to compare it with."]
    )


def plots(report: Report) -> list[tuple[str, str]]:
    """(caption, svg) of the judged share against bytes on disk and against p50 latency; none where x is unknown."""
    share = tables.metric_name(report)
    size_points = _points(report, {s.name: s.bytes for s in report.systems}, star=False)
    time_points = _points(report, {s.name: s.latency_p50_ms for s in report.systems}, star=True)
    level = _teacher_level(report)
    lacking = " Bases and students in torch are in the table." if len(report.students) > 1 else ""
    found = []
    if size_points:
        svg = plot.scatter(size_points, level, "bytes on disk (log)", f"{share} %", _bytes_tick)
        found.append((f"{share.capitalize()} against size. Further left and higher is better.{lacking}", svg))
    if time_points:
        svg = plot.scatter(time_points, level, "p50 latency (log)", f"{share} %", _ms_tick)
        star = " * timed when the bundle was built." if any(p.name.endswith("*") for p in time_points) else ""
        found.append((f"{share.capitalize()} against latency. Further left and higher is better.{star}", svg))
    return found


def _points(report: Report, xs: dict[str, int | None] | dict[str, float | None], star: bool) -> list[plot.Point]:
    """The systems whose x is known; of several students only what runs on the device, or nobody could read it."""
    several = len(report.students) > 1
    points = []
    for system in report.systems:
        x, y = xs[system.name], tables.judged_share(report, system)
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


def _bytes_tick(value: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g} B"


def _ms_tick(value: float) -> str:
    return f"{value / 1e3:g} s" if value >= 1e3 else f"{value:g} ms"


def _view(report: Report) -> dict[str, object]:
    """What both templates get: the report, its tables and its sentences."""
    main, alone = main_artifact(report), len(report.students) == 1
    first, second = headline(report, main), tables.choice_sentence(report)
    if not alone and second:
        first, second = second, ""  # the verdicts below it say what the headline would
    return {
        "report": report,
        "title": f"{report.name}: {'student' if alone else 'students'} against teacher",
        "headline": first,
        "second": second,
        "verdicts": telling_verdicts(report),
        "main": main,
        "contention": tables.contention_note(report) if report.conditions.contended else "",
        "tiles": _tiles(report, main),
        "systems": tables.systems_table(report),
        "comparisons": tables.comparisons_table(report),
        "labels_title": "Recall by label" if report.sets is None else "Precision, recall and F1 by label",
        "labels": tables.labels_table(report) if report.sets is None else set_tables.sets_table(report.sets),
        "none_table": tables.none_table(report),
        "details": tables.details_table(report),
        "conditions": tables.conditions_table(report),
        "notes": [*([] if report.sets is None else set_tables.set_notes(report.sets)), *tables.notes(report)],
    }


def _tiles(report: Report, main: System) -> list[tuple[str, str, str]]:
    """(name, number, small print) of the main artifact."""
    teacher = next(s for s in report.systems if s.kind == "teacher")
    share = tables.judged_share(report, main)
    n = report.conditions.rows
    price = tables.usd(teacher.api_usd_per_1000_requests)
    paid = "teacher not known" if price == tables.UNKNOWN else f"teacher {price} USD"
    interval = f"95 %: {100 * share.low:.1f} to {100 * share.high:.1f}, {n} rows" if share else ""
    p90 = "" if main.latency_p90_ms is None else f"p90 {tables.short(main.latency_p90_ms)} ms"
    peak = f"peak memory {tables.short(main.peak_rss_bytes, 1e6)} MB"
    return [
        (tables.metric_name(report), f"{100 * share.value:.1f} %" if share else tables.UNKNOWN, interval),
        ("p50 latency", f"{tables.short(main.latency_p50_ms)} ms", p90),
        ("on disk", f"{tables.short(main.bytes, 1e6)} MB", peak),
        ("API price of 1,000 requests", f"{tables.usd(main.api_usd_per_1000_requests)} USD", paid),
    ]


def _terminal_cells(report: Report) -> tables.Table:
    gold = (f"{tables.metric_name(report)} %",) if report.has_gold else ()
    micro = ("micro-F1 %",) if report.is_multilabel else ()
    alike = "agreement %" if report.has_gold else f"{tables.metric_name(report)} %"
    header = ("system", *gold, *micro, alike, "p50 ms", "p90 ms", "peak MB", "disk MB", "USD/1000")
    rows = []
    for s in report.systems:
        judged = (tables.percent(s.accuracy),) if report.has_gold else ()
        over_labels = (_value(s.micro_f1),) if report.is_multilabel else ()
        agreement = _value(s.agreement) if report.has_gold else tables.percent(s.agreement)
        times = (tables.short(s.latency_p50_ms), tables.short(s.latency_p90_ms))
        sizes = (tables.short(s.peak_rss_bytes, 1e6), tables.short(s.bytes, 1e6))
        price = tables.usd(s.api_usd_per_1000_requests)
        rows.append((tables.marked(s), *judged, *over_labels, agreement, *times, *sizes, price))
    return tables.Table(header, tuple(rows))


def _value(share: Estimate | None) -> str:
    return tables.UNKNOWN if share is None else f"{100 * share.value:.1f}"


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    """The name to the left and cut to its width, numbers to the right."""
    name = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 3] + "..."
    return [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _environment(autoescape: bool) -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
