"""A report as Markdown, as one HTML file and as text for a terminal. Writes no file and computes no statistic."""

import textwrap
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from edgestill.benchmarks.measurement import INVALID, VALID
from edgestill.benchmarks.page import answer_tables, cost_words, run_tables, set_tables, tables
from edgestill.benchmarks.page.charts import charts
from edgestill.benchmarks.page.conditions import conditions_table
from edgestill.benchmarks.report import Report
from edgestill.benchmarks.systems import System
from edgestill.runtime.metrics import Estimate

TERMINAL_COLUMNS = 110


def markdown(report: Report) -> str:
    """The text of report.md."""
    environment = _environment(autoescape=False)
    environment.filters["cell"] = _markdown_cell
    return environment.get_template("report.md.jinja").render(_view(report))


def html(report: Report) -> str:
    """The text of report.html: no script, nothing fetched, readable in light and dark and on a phone."""
    view = _view(report)
    return _environment(autoescape=True).get_template("report.html.jinja").render(view, plots=charts(report))


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
    if any(" *" in row[0] for row in table.rows):
        lines.append("* time and memory as taken when the bundle was built")
    if tables.warning(report):
        lines.append(textwrap.fill(tables.warning(report), TERMINAL_COLUMNS, subsequent_indent="  "))
    if report.conditions.contended:
        lines.append(tables.contention_note(report))
    return "\n".join([*first, *lines, "", *told])


def main_artifact(report: Report) -> System:
    """The artifact that a report speaks of first.

    Of one student its first artifact, on the first machine whose clock can be believed; of several students the chosen
    one, or the best artifact when the floor was chosen.
    """
    artifacts = [s for s in report.systems if s.kind == "artifact"]
    if len(report.students) == 1:
        timed = [s for s in artifacts if s.validity == VALID and s.latency_p50_ms is not None]
        return (timed or artifacts)[0] if len(report.machines) > 1 else artifacts[0]
    chosen = [s for s in artifacts if report.choice is not None and s.name == report.choice.chosen]
    return (chosen or sorted(artifacts, key=lambda s: -_judged_value(report, s)))[0]


def _judged_value(report: Report, system: System) -> float:
    share = tables.judged_share(report, system)
    return 0.0 if share is None else share.value


def telling_verdicts(report: Report) -> list[tuple[str, str]]:
    """(outcome, sentence) of every comparison; with several students or machines of the main artifact's alone."""
    main, alone = main_artifact(report).name, len(report.students) == len(report.machines) == 1
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


def _view(report: Report) -> dict[str, object]:
    """What both templates get: the report, its tables and its sentences."""
    main, alone, one_machine = main_artifact(report), len(report.students) == 1, len(report.machines) == 1
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
        "place": _place(report, main),
        "warning": tables.warning(report),
        "contention": tables.contention_note(report) if report.conditions.contended and one_machine else "",
        "tiles": _tiles(report, main),
        "systems": tables.systems_table(report),
        "comparisons": tables.comparisons_table(report),
        "labels_title": "Recall by label" if report.sets is None else "Precision, recall and F1 by label",
        "labels": tables.labels_table(report) if report.sets is None else set_tables.sets_table(report.sets),
        "written": tables.written_table(report),
        "none_table": tables.none_table(report),
        "validity": run_tables.validity_table(report),
        "parity": answer_tables.parity_table(report),
        "apart": answer_tables.apart_table(report),
        "flips": list(answer_tables.flip_listings(report)),
        "confusion": answer_tables.confusion_table(report),
        "matrix": answer_tables.matrix_table(report, main.name),
        "calibration": answer_tables.calibration_table(report),
        "gauges": run_tables.gauge_tables(report),
        "cost": cost_words.cost_sentences(report),
        "details": tables.details_table(report),
        "conditions": conditions_table(report),
        "notes": [*([] if report.sets is None else set_tables.set_notes(report.sets)), *tables.notes(report)],
    }


def _place(report: Report, main: System) -> str:
    """Where the main artifact was measured, such as "measured on pi5 (ssh)"."""
    site = next(s for s in report.machines if s.machine.name == main.machine)
    if len(report.machines) == 1 and site.machine.transport == "local":
        return "measured on this machine"
    how = site.machine.emulator or site.machine.profile or site.machine.transport
    return f"measured on {site.machine.name}" + (f" ({how})" if how != site.machine.name else "")


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
        (f"p50 latency{' †' if main.validity == INVALID else ''}", f"{tables.short(main.latency_p50_ms)} ms", p90),
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
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
