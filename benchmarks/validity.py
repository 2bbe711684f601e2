"""Whether the clock's numbers of a measurement may be believed, and if not, why. The thresholds stand here, once."""

from collections.abc import Sequence
from statistics import median

from edgestill.benchmarks.measurement import Noise, Request, Thermal
from edgestill.runtime.metrics import MIN_SAMPLES_P90

# Percent of the last 10 s in which some task waited for a processor; the run's own threads hardly do.
CONTENDED_PSI_PERCENT = 10.0
# Percent of the time that the host of a virtual machine gave to other guests.
MOST_STEAL_PERCENT = 2.0
# Later requests slower or faster than the first ones by more than this share: the machine changed.
MOST_DRIFT = 0.10
# A quarter of fewer requests has a median that means little.
MIN_SAMPLES_DRIFT = 4 * MIN_SAMPLES_P90


def reasons_against(
    requests: Sequence[Request], thermal: Thermal, noise: Noise, governor_changed: bool
) -> tuple[str, ...]:
    """Every reason not to believe the clock, a sentence each; none where a gauge is silent."""
    timed = sum(request.latency_ms is not None for request in requests)
    psi, steal, drift = noise.psi_cpu_some_avg10, noise.steal_percent, thermal.drift
    found = []
    if timed < MIN_SAMPLES_P90:
        found.append(f"too few requests: {timed} timed, wanted {MIN_SAMPLES_P90}")
    if psi is not None and psi > CONTENDED_PSI_PERCENT:
        found.append(
            f"contended: tasks waited for a processor {psi:.0f} % of the time, at most {_of(CONTENDED_PSI_PERCENT)}"
        )
    if steal is not None and steal > MOST_STEAL_PERCENT:
        found.append(f"contended: the host took {steal:.1f} % of the time, at most {_of(MOST_STEAL_PERCENT)}")
    if thermal.throttled:
        found.append("throttled: the processor slowed itself down")
    if drift is not None and abs(drift) > MOST_DRIFT:
        found.append(f"drift: the last quarter took {drift:+.0%} against the first, at most {_of(100 * MOST_DRIFT)}")
    if governor_changed:
        found.append("governor: what sets the clock was changed during the run")
    return tuple(found)


def drift_of(requests: Sequence[Request]) -> float | None:
    """Median latency of the last quarter over that of the first, minus 1; None for too few requests to tell.

    Each latency is a share of its row's median. Rows that were timed once tell nothing of time and are left out.
    """
    by_row: dict[str, list[float]] = {}
    for request in requests:
        if request.latency_ms is not None:
            by_row.setdefault(request.row_id, []).append(request.latency_ms)
    middles = {row: median(found) for row, found in by_row.items() if len(found) > 1}
    shares = [
        request.latency_ms / middles[request.row_id]
        for request in requests
        if request.latency_ms is not None and middles.get(request.row_id)
    ]
    if len(shares) < MIN_SAMPLES_DRIFT:
        return None
    quarter = len(shares) // 4
    return median(shares[-quarter:]) / median(shares[:quarter]) - 1


def _of(percent: float) -> str:
    return f"{percent:g} % wanted"
