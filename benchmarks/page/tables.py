"""A report's numbers as text: units, tables and notes that the terminal, Markdown and HTML share. Computes nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgestill.benchmarks.measurement import INVALID
from edgestill.benchmarks.reference import AT_BUILD
from edgestill.benchmarks.report import Report
from edgestill.benchmarks.systems import System
from edgestill.benchmarks.validity import CONTENDED_PSI_PERCENT
from edgestill.benchmarks.verdict import MARGIN, Comparison
from edgestill.runtime.metrics import Estimate

UNKNOWN = "-"
MOST_INTERVALS = 6  # columns of shares that have room for their intervals


@dataclass(frozen=True)
class Table:
    """A header of C cells and rows of C cells, all text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(estimate: Estimate | None) -> str:
    """A share as percent with its interval, such as "89.0 [85.1, 92.0]"."""
    if estimate is None:
        return UNKNOWN
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def short(value: float | None, scale: float = 1.0) -> str:
    """`value / scale` with about three digits, never in exponent form."""
    if value is None:
        return UNKNOWN
    scaled = value / scale
    if 0 < scaled < 0.01:
        return "< 0.01"
    digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:.{digits}f}"


def usd(value: float | None) -> str:
    """A price in US dollars, to the cent, smaller ones to two digits."""
    if value is None:
        return UNKNOWN
    return f"{value:.2f}" if value == 0 or value >= 0.1 else f"{value:.2g}"


def p_value(value: float) -> str:
    """A p-value to three places, such as "0.041" or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def metric_name(report: Report) -> str:
    """What the judged share is called: accuracy needs gold, and of a set of labels it is of the whole set."""
    if report.is_multilabel:
        return "exact match" if report.has_gold else "exact agreement"
    return "accuracy" if report.has_gold else "agreement"


def judged_share(report: Report, system: System) -> Estimate | None:
    """The share that `metric_name` names."""
    return system.accuracy if report.has_gold else system.agreement


def systems_table(report: Report) -> Table:
    """One row a system, everything that is compared."""
    gold = (f"{metric_name(report)} %",) if report.has_gold else ()
    micro, alike = (("micro-F1 %",), "exact agreement") if report.is_multilabel else ((), "agreement")
    macro = ("macro-F1 %",) if report.is_multilabel or report.has_classes else ()
    header = ("system", *gold, *micro, *macro, f"{alike} with the teacher %", "p50 ms", "p90 ms")
    costs = ("peak memory MB", "disk MB", "API USD per 1,000")
    rows = []
    for s in report.systems:
        judged = (percent(s.accuracy),) if report.has_gold else ()
        over_labels = (percent(s.micro_f1),) if report.is_multilabel else ()
        times = (short(s.latency_p50_ms), short(s.latency_p90_ms))
        sizes = (short(s.peak_rss_bytes, 1e6), short(s.bytes, 1e6), usd(s.api_usd_per_1000_requests))
        f1 = (*over_labels, *(percent(s.macro_f1) for _ in macro))
        rows.append((marked(s), *judged, *f1, percent(s.agreement), *times, *sizes))
    return Table((*header, *costs), tuple(rows))


def marked(system: System) -> str:
    """The system's name, with a star when time and memory are not of this machine and moment, a dagger when INVALID."""
    star = " *" if system.measured == AT_BUILD else ""
    return f"{system.name}{star}{' †' if system.validity == INVALID else ''}"


def comparisons_table(report: Report) -> Table:
    """One row a paired comparison."""
    margin = f"A at most {100 * MARGIN:g} points worse"
    header = ("A", "B", "A minus B, points", "only A right", "only B right", "p", "outcome for A", margin)
    return Table(header, tuple(_comparison_cells(c) for c in report.comparisons))


def _comparison_cells(c: Comparison) -> tuple[str, ...]:
    value, low, high = (100 * x + 0.0 for x in (c.difference.value, c.difference.low, c.difference.high))
    difference = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    shown = "shown" if c.non_inferior else "not shown"
    return c.a, c.b, difference, str(c.only_a), str(c.only_b), p_value(c.p_value), c.outcome, shown


def labels_table(report: Report) -> Table | None:
    """One row a label: n rows, and of these the percent that each system found; of many systems without intervals.

    None where labels do not mean the same in every row.
    """
    if not report.labels:
        return None
    names = list(report.labels[0].recall)
    cell = percent if len(names) <= MOST_INTERVALS else _share
    rows = [(line.label, str(line.n), *(cell(line.recall[name]) for name in names)) for line in report.labels]
    return Table(("label", "n", *(f"{name} %" for name in names)), tuple(rows))


def _share(estimate: Estimate | None) -> str:
    return UNKNOWN if estimate is None else f"{100 * estimate.value:.1f}"


def written_table(report: Report) -> Table | None:
    """One row a system: token F1 where answers are compared so, rows without an answer, tokens written a row."""
    written = report.written
    if written is None:
        return None
    f1 = ("token F1 %",) if report.match == "f1" else ()
    rows = []
    for name, unanswered in written.unanswered.items():
        tokens = short(written.tokens_a_row[name])
        rows.append((name, *(percent(written.token_f1[name]) for _ in f1), percent(unanswered), tokens))
    return Table(("system", *f1, "rows without an answer %", "tokens written a row"), tuple(rows))


def none_table(report: Report) -> Table | None:
    """One row a system: of the rows that are none of these and of the others, the percent it called none of these."""
    none = report.none
    if none is None:
        return None
    header = ("system", f"found, of {none.n} such rows %", f"false alarms, of {none.n_other} other rows %")
    rows = [(name, percent(found), percent(none.false_alarms[name])) for name, found in none.recall.items()]
    return Table(header, tuple(rows))


def details_table(report: Report) -> Table:
    """What each system is, and how it starts: import, load, first request, memory after loading."""
    header = (
        "system",
        "what it is",
        "timed requests",
        "import s",
        "load s",
        "first request ms",
        "memory after load MB",
    )
    rows = [
        (
            marked(s),
            s.note,
            str(s.latency_samples),
            short(s.import_s),
            short(s.load_s),
            short(s.first_request_ms),
            short(s.rss_after_load_bytes, 1e6),
        )
        for s in report.systems
    ]
    return Table(header, tuple(rows))


def notes(report: Report) -> list[str]:
    """Sentences without which the numbers would mislead."""
    found = [_judging_note(report), *_written_note(report), _test_note(report)]
    found += [*_choice_note(report), *_time_notes(report)]
    found.append(
        "API USD per 1,000 is what the teacher's API asks for 1,000 such requests; nothing is paid per request for the "
        "others. Energy and the device itself are not priced."
    )
    if report.invalid or report.left_out:
        found.append(warning(report))
    if report.conditions.contended:
        found.append(contention_note(report))
    found.append(f'"{UNKNOWN}" means not measured or not known. MB are 1,000,000 bytes.')
    return found


def choice_sentence(report: Report) -> str:
    """Which system to take and what it may cost in points; empty where there was nothing to choose from."""
    choice = report.choice
    if choice is None:
        return ""
    told = {s.name: f"{s.name} ({_worth(report, s)})" for s in report.systems}
    if choice.difference is None:
        cheaper = choice.candidates[: choice.candidates.index(choice.chosen)]
        rest = f"all that is cheaper is shown to be worse: {listed(cheaper)}" if cheaper else "nothing is cheaper"
        return f"The {told[choice.best]} is the best, and {rest}."
    return (
        f"Cheapest not shown to be worse than the best: {told[choice.chosen]}; the best is {told[choice.best]}. "
        f"With {report.conditions.rows} rows it may yet be up to {100 * (choice.may_lose or 0):.1f} points worse."
    )


def _worth(report: Report, system: System) -> str:
    """Such as "91.2 %, 3.10 ms, 24.0 MB"."""
    share, p50 = judged_share(report, system), system.latency_p50_ms
    right = UNKNOWN if share is None else f"{100 * share.value:.1f} %"
    time = "latency not known" if p50 is None else f"{short(p50)} ms"
    return f"{right}, {time}, {'size not known' if system.bytes is None else short(system.bytes, 1e6) + ' MB'}"


def warning(report: Report) -> str:
    """What was left out, and which runs broke a rule of measuring; empty when all went well."""
    left_out = f"Left out: {'; '.join(report.left_out)}." if report.left_out else ""
    return " ".join(filter(None, (left_out, _invalid_note(report) if report.invalid else "")))


def _invalid_note(report: Report) -> str:
    told = "; ".join(f"{run.system} ({', '.join(run.reasons) or 'no reason told'})" for run in report.invalid)
    return f"† INVALID by the clock: {told}."


def contention_note(report: Report) -> str:
    """One sentence for machines that had other work to do."""
    waited = report.conditions.psi_cpu_some_avg10
    if len(report.machines) == 1:
        return f"The machine was contended (tasks waited {waited:g} % of the time): read the times as upper bounds."
    busy = [run.machine for run in report.runs if (run.noise.psi_cpu_some_avg10 or 0) > CONTENDED_PSI_PERCENT]
    where = listed(list(dict.fromkeys(busy)))
    return f"Contended: {where} (tasks waited up to {waited:g} % of the time). Read the times there as upper bounds."


def _judging_note(report: Report) -> str:
    f1, parted = ("micro-F1 and macro-F1", ",") if report.is_multilabel else ("macro-F1", " and")
    bootstrap = f"; {f1}: bootstrap" if report.is_multilabel or report.has_classes else ""
    how = f"over {report.conditions.rows} test rows, with 95 % intervals (shares: Wilson{bootstrap})."
    if report.has_gold:
        teacher = next(s for s in report.systems if s.kind == "teacher")
        same = teacher.accuracy is not None and teacher.accuracy.value == 1
        alike = " On these rows the teacher's label is always the gold label: the two are one measure." if same else ""
        share = metric_name(report).capitalize()
        if not bootstrap:
            return f"{share} is against the gold answers, agreement is with the teacher's; both {how}{alike}"
        return f"{share}{parted} {f1} are against the gold labels, agreement is with the teacher's; all {how}{alike}"
    return (
        f"The test rows have no gold labels: everything is judged by the teacher's labels, {how} This says how well "
        "the teacher is imitated, not who is right."
    )


def _written_note(report: Report) -> Iterator[str]:
    if report.match is not None:
        tokens = " Token F1 is the mean over the rows, with a bootstrap interval." if report.match == "f1" else ""
        how = "as numbers" if report.match == "number" else "but for case, blanks and outer punctuation"
        yield f"An answer is right when it equals the right one, {how}; a row without an answer is wrong.{tokens}"
    if report.has_choices:
        yield "Each row has its own choices: their letters mean nothing across rows, so no figure is told by letter."


def _test_note(report: Report) -> str:
    return (
        "Comparisons are paired over the same rows: bootstrap interval of the difference and McNemar's exact test, not "
        f"corrected for the {len(report.comparisons)} comparisons. A difference counts as shown when p < 0.05 and the "
        "interval leaves 0 out. No difference shown does not mean equal: the interval says how far apart they may be. "
        f"At most {100 * MARGIN:g} points worse counts as shown when the lower end of the interval is above that."
    )


def _choice_note(report: Report) -> Iterator[str]:
    if report.choice is not None:
        count = len(report.choice.candidates) - 1
        tests = "the one test against it is" if count == 1 else f"the {count} tests against it are"
        yield f"{report.choice.rule} The best was picked on these same rows, and {tests} not corrected either."


def _time_notes(report: Report) -> Iterator[str]:
    out = "label out" if report.match is None else "the end of the written answer"
    yield f"Latency is from text in to {out}, tokenization included, one request at a time."
    starred = [s.name for s in report.systems if s.measured == AT_BUILD]
    if starred:
        yield (
            f"* Time and memory of {listed(starred)} were taken when the bundle was built, perhaps on another "
            "machine; loading with torch includes its import, and the floor's memory includes fitting it."
        )
    for system in report.systems:
        if system.latency_reason:
            lacking = "latency" if system.latency_p50_ms is None else "p90"
            yield f"No {lacking} is stated for the {system.name}: {system.latency_reason}."


def listed(names: Sequence[str]) -> str:
    """One name or more, such as "a, b and c"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
