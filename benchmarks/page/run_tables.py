"""What was read of each run, as tables: validity, loads, speed, memory, energy, heat, noise. Computes nothing."""

from collections.abc import Callable, Sequence
from statistics import median

from edgestill.benchmarks.measurement import INVALID
from edgestill.benchmarks.page.tables import UNKNOWN, Table, short
from edgestill.benchmarks.report import Report
from edgestill.benchmarks.runs import Run

Column = tuple[str, Callable[[Run], str]]


def run_table(report: Report, columns: Sequence[Column]) -> Table | None:
    """One row a run; columns of which nothing is known are left out, None when that leaves nothing."""
    told = [(name, [cell(run) for run in report.runs]) for name, cell in columns]
    known = [(name, cells) for name, cells in told if set(cells) != {UNKNOWN}]
    if not known:
        return None
    names = [f"{run.system} †" if run.validity == INVALID else run.system for run in report.runs]
    rows = zip(names, *(cells for _, cells in known), strict=True)
    return Table(("system", *(name for name, _ in known)), tuple(rows))


def validity_table(report: Report) -> Table:
    """Which runs are VALID; an INVALID one with its reasons."""
    sites = {site.machine.name: site for site in report.machines}
    rows = []
    for run in report.runs:
        reasons = "; ".join(run.reasons) or UNKNOWN
        machine = sites[run.machine].machine
        how = machine.transport if machine.profile is None else f"{machine.transport}, {machine.profile}"
        rows.append((run.system, run.machine, machine.emulator or how, _verdict(run, machine.emulated), reasons))
    return Table(("run", "machine", "reached by", "validity", "reasons"), tuple(rows))


def _verdict(run: Run, emulated: bool) -> str:
    said = "INVALID" if run.validity == INVALID else "VALID"
    return f"{said}, answers only" if emulated else said


LOADS: tuple[Column, ...] = (
    ("import s", lambda run: short(run.loads.import_s)),
    ("cold load s", lambda run: _seconds(run.loads.cold_s)),
    ("cold by", lambda run: run.loads.cold_method or UNKNOWN),
    ("then first request ms", lambda run: _milliseconds(run.loads.cold_first_request_ms)),
    ("warm load s", lambda run: _seconds(run.loads.warm_s)),
    ("warm first request ms", lambda run: short(run.loads.first_request_ms)),
)
SPEED: tuple[Column, ...] = (
    ("p50 ms", lambda run: short(run.latency_ms.p50)),
    ("p90 ms", lambda run: short(run.latency_ms.p90)),
    ("p99 ms", lambda run: short(run.latency_ms.p99)),
    ("timed requests", lambda run: str(run.latency_ms.n) if run.latency_ms.n else UNKNOWN),
    ("offline rows a second", lambda run: short(run.offline_rows_per_s)),
)
WRITING: tuple[Column, ...] = (
    ("prompt tokens", lambda run: UNKNOWN if run.decoding_prompt_tokens is None else str(run.decoding_prompt_tokens)),
    ("first token p50 ms", lambda run: short(run.ttft_ms.p50)),
    ("first token p90 ms", lambda run: short(run.ttft_ms.p90)),
    ("next token p50 ms", lambda run: short(run.itl_ms.p50)),
    ("next token p90 ms", lambda run: short(run.itl_ms.p90)),
    ("next token p99 ms", lambda run: short(run.itl_ms.p99)),
    ("prefill tokens a second", lambda run: short(run.prefill_tok_s)),
    ("decode tokens a second", lambda run: short(run.decode_tok_s)),
)
MEMORY: tuple[Column, ...] = (
    ("after import MB", lambda run: short(run.memory.rss_after_import_bytes, 1e6)),
    ("after load MB", lambda run: short(run.memory.rss_after_load_bytes, 1e6)),
    ("peak of the load MB", lambda run: short(run.memory.peak_rss_load_bytes, 1e6)),
    ("peak MB", lambda run: short(run.memory.peak_rss_bytes, 1e6)),
    ("anonymous MB", lambda run: short(run.memory.anonymous_after_bytes, 1e6)),
    ("proportional MB", lambda run: short(run.memory.pss_after_bytes, 1e6)),
    ("peak of the cgroup MB", lambda run: short(run.memory.cgroup_peak_bytes, 1e6)),
    ("from", lambda run: run.memory.method or UNKNOWN),
)
ENERGY: tuple[Column, ...] = (
    ("source", lambda run: run.energy.source or UNKNOWN),
    ("idle W", lambda run: short(run.energy.idle_w)),
    ("gross J", lambda run: short(run.energy.gross_j)),
    ("net J", lambda run: short(run.energy.net_j)),
    ("net J a request", lambda run: short(run.energy.net_j_per_request)),
)
HEAT_AND_NOISE: tuple[Column, ...] = (
    ("start °C", lambda run: short(run.thermal.start_c)),
    ("highest °C", lambda run: short(run.thermal.max_c)),
    ("end °C", lambda run: short(run.thermal.end_c)),
    ("lowest clock %", lambda run: _percent(run.thermal.lowest_frequency)),
    ("throttled", lambda run: {None: UNKNOWN, True: "yes", False: "no"}[run.thermal.throttled]),
    ("drift %", lambda run: UNKNOWN if run.thermal.drift is None else f"{100 * run.thermal.drift:+.1f}"),
    ("tasks waited %", lambda run: _number(run.noise.psi_cpu_some_avg10)),
    ("stolen %", lambda run: _number(run.noise.steal_percent)),
    ("lost the processor", lambda run: _number(run.noise.involuntary_switches)),
    ("load of 1 min", lambda run: _number(run.noise.load_1min)),
)
# title, columns, what is said where nothing is known
GAUGES: tuple[tuple[str, tuple[Column, ...], str], ...] = (
    ("Loading", LOADS, "Loading was not timed."),
    ("Speed", SPEED, "Nothing was timed: an emulated machine says nothing of speed."),
    ("Writing text", WRITING, ""),
    ("Memory", MEMORY, "Memory is not known."),
    ("Energy", ENERGY, "Energy is not known: no source was found on the machine."),
    ("Heat and noise", HEAT_AND_NOISE, "No gauge of heat or noise was found on the machine."),
)


def gauge_tables(report: Report) -> list[tuple[str, Table | None, str]]:
    """(title, table, what to say in its place); what neither is known nor missed is left out."""
    found = [(title, run_table(report, columns), missing) for title, columns, missing in GAUGES]
    return [(title, table, missing) for title, table, missing in found if table is not None or missing]


def _milliseconds(samples: Sequence[float]) -> str:
    return short(median(samples)) if samples else UNKNOWN


def _seconds(samples: Sequence[float]) -> str:
    """The median, and of how many."""
    if not samples:
        return UNKNOWN
    return short(median(samples)) if len(samples) == 1 else f"{short(median(samples))} (of {len(samples)})"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.0f}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:g}"
