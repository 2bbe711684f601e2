"""An experiment's one table, as Markdown and as text for a terminal. Computes no statistic."""

from collections.abc import Iterator

from edgestill.benchmarks.experiments.result import ArmResult, Difference, ExperimentResult
from edgestill.runtime.metrics import Estimate

UNKNOWN = "-"


def markdown_page(result: ExperimentResult, pictures: tuple[str, ...]) -> str:
    """The text of table.md: the table, the pictures, and how to read both."""
    head, *rows = cells(result)
    lines = [f"# {result.name}", "", _row(head), "|" + "---|" * len(head), *(_row(row) for row in rows), ""]
    lines += [f"![{name.removesuffix('.svg').replace('-', ' ')}]({name})" for name in pictures]
    return "\n".join([*lines, "", *notes(result)]) + "\n"


def terminal_text(result: ExperimentResult) -> str:
    """Arms, rows, tokens, accuracy and difference in columns, without colour, then what is missing."""
    table = [[row[0], row[1], row[2], row[3], row[6], row[7]] for row in cells(result)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines, *_missing(result)])


def cells(result: ExperimentResult) -> list[list[str]]:
    """The table: its header, then an arm a row."""
    unit = "accuracy" if result.metric == "gold" else "agreement with the teacher"
    head = ["arm", "rows asked", "rows learnt from", "teacher tokens", "USD", f"{unit} %, each seed", "mean"]
    head += [f"minus {result.against}, points", "minus its random control, points", "labels right %"]
    head += ["annotate s", "train s", "MB"]
    return [head, *(_cells(result, arm) for arm in result.arms)]


def notes(result: ExperimentResult) -> list[str]:
    """What the columns mean, and the conditions."""
    what = "the gold label" if result.metric == "gold" else "the teacher's label: there is no gold"
    rows = " or ".join(f"{count:,}" for count in result.test_rows)
    return [
        f"- Right is {what}; {rows} test rows, answered in torch before any quantization. Seeds: "
        f"{', '.join(map(str, result.seeds))}.",
        f"- Intervals: {result.intervals}.",
        "- Rows, tokens and USD are means over the seeds: rows of training; tokens, prompt and completion, and USD of "
        "training and development rows at what the answers took when they were made, whoever paid. Test rows are "
        "not in them. In the pictures arms with almost the same number stand side by side.",
        "- Labels right: share of the rows learnt from whose label is the pool's gold, which no student sees. "
        "Annotate s: of asking and choosing, with the students that choose, little where answers were kept. Train s: "
        f"of the student that is measured. MB: highest resident memory. {UNKNOWN}: not known, or none.",
        f"- Device: {'; '.join(result.devices)}. "
        + ", ".join(f"{name} {version}" for name, version in sorted(result.packages.items()))
        + ".",
        *(f"- {line}" for line in _missing(result)),
    ]


def _missing(result: ExperimentResult) -> Iterator[str]:
    if result.missing:
        yield f"Not finished: {', '.join(result.missing)}"


def _cells(result: ExperimentResult, arm: ArmResult) -> list[str]:
    each = ", ".join(f"{100 * seed.accuracy.value:.1f}" for seed in arm.seeds)
    quality = UNKNOWN if arm.label_quality is None else f"{100 * arm.label_quality:.1f}"
    return [
        f"{arm.name} (control)" if arm.is_control else arm.name,
        f"{arm.rows_asked:,.0f}",
        f"{arm.rows_learnt_from:,.0f}",
        UNKNOWN if arm.teacher_tokens is None else f"{arm.teacher_tokens:,.0f}",
        UNKNOWN if arm.teacher_usd is None else f"{float(arm.teacher_usd):.4f}",
        each,
        f"{100 * arm.accuracy.value:.1f} {_interval(arm.accuracy, '.1f')}",
        _points(_between(result, arm.name, result.against)),
        _points(None if arm.control is None else _between(result, arm.name, arm.control)),
        quality,
        f"{arm.annotate_s:,.0f}",
        f"{arm.train_s:,.0f}",
        UNKNOWN if arm.peak_rss_bytes is None else f"{arm.peak_rss_bytes / 1e6:,.0f}",
    ]


def _between(result: ExperimentResult, arm: str, against: str) -> Difference | None:
    return next((one for one in result.differences if (one.arm, one.against) == (arm, against)), None)


def _points(difference: Difference | None) -> str:
    if difference is None:
        return UNKNOWN
    return f"{100 * difference.difference.value:+.1f} {_interval(difference.difference, '+.1f')}"


def _interval(estimate: Estimate, form: str) -> str:
    return f"[{100 * estimate.low:{form}}, {100 * estimate.high:{form}}]"


def _row(texts: list[str]) -> str:
    return "| " + " | ".join(texts) + " |"
