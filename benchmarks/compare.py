"""Two reports of the same rows, an old and a new one: what became slower or worse beyond noise. Measures nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgestill.benchmarks import verdict
from edgestill.benchmarks.folder import Kept, read_folder
from edgestill.benchmarks.joined import check_same_rows
from edgestill.benchmarks.measurement import INVALID, Measurement
from edgestill.benchmarks.page.tables import p_value
from edgestill.benchmarks.reference import Answers, artifact_answers
from edgestill.benchmarks.report import Report, Site
from edgestill.benchmarks.runs import Run
from edgestill.benchmarks.verdict import Comparison
from edgestill.runtime import metrics
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.metrics import Estimate

Key = tuple[str, str, str]

FASTER, SLOWER, SAME = "faster", "slower", "the same"
# Two runs on a quiet machine differ by a few percent; from less than this nobody should conclude.
LEAST_NOISE = 0.05
CHUNK = 500


@dataclass(frozen=True)
class Clock:
    """New over old time, a ratio, as the median over `rows` rows, with its bootstrap 95 % interval over rows.

    `noise` is what the ratio has to leave 1 by: the larger spread between the rounds of a run, but at least 5 %.
    """

    ratio: Estimate
    rows: int
    noise: float
    outcome: str


@dataclass(frozen=True)
class Change:
    """One artifact then and now, A of `quality` now and B then; `clock` is None where `not_timed` says why."""

    artifact: str
    quality: Comparison
    flips: int
    clock: Clock | None
    not_timed: str | None


@dataclass(frozen=True)
class Changes:
    """What `edgestill compare` found; `regressions` are sentences, none when nothing became slower or worse."""

    old: str
    new: str
    rows: int
    changes: tuple[Change, ...]
    regressions: tuple[str, ...]
    schema: str = "edge-compare/1"


@dataclass(frozen=True)
class _Side:
    """One artifact in one of the reports."""

    run: Run
    site: Site
    measurement: Measurement


def compare_reports(old: Path, new: Path) -> Changes:
    """Every artifact that both reports have, on machines of the same name where a report has several.

    Raises:
        EdgestillError: a folder that is not whole, reports of other rows, or without a common artifact.
    """
    before, after = read_folder(old), read_folder(new)
    check_same_rows(before, after)
    olds, news = _sides(before), _sides(after)
    common = [key for key in news if key in olds]
    if not common:
        raise EdgestillError(
            f"{after.path} has {_told(news)}, wanted one of {before.path}: {_told(olds)}",
            "compare reports of the same engine, student and machine",
        )
    changes = tuple(_change(olds[key], news[key], after) for key in common)
    return Changes(
        old=str(before.path),
        new=str(after.path),
        rows=len(after.reference.row_ids),
        changes=changes,
        regressions=(*(line for change in changes for line in _regressions(change)), *_gone(olds, news, after)),
    )


def _gone(olds: Mapping[Key, _Side], news: Mapping[Key, _Side], after: Kept) -> Iterator[str]:
    """Artifacts that could no longer be measured; those that nobody asked for are no loss."""
    if after.report.left_out:
        missing = [side.run.system for key, side in olds.items() if key not in news]
        yield from (f"{name} is gone: {'; '.join(after.report.left_out)}" for name in missing)


def _sides(kept: Kept) -> dict[Key, _Side]:
    """By (student, engine, machine); student and machine are empty where the report has a single one."""
    report, sites = kept.report, {site.machine.name: site for site in kept.report.machines}
    return {
        _key(report, run): _Side(run, sites[run.machine], measurement)
        for run, measurement in zip(report.runs, kept.measurements, strict=True)
    }


def _key(report: Report, run: Run) -> Key:
    several = len(report.machines) > 1
    return run.student if len(report.students) > 1 else "", run.engine, run.machine if several else ""


def _told(sides: dict[Key, _Side]) -> str:
    return ", ".join(side.run.system for side in sides.values())


def _change(old: _Side, new: _Side, after: Kept) -> Change:
    reference = after.reference
    then, now = (_answers(side, name, reference.row_ids) for side, name in ((old, "old"), (new, "new")))
    reason = why_not_timed(old.run, new.run, old.site, new.site)
    clock = None if reason else clock_of(old.measurement, new.measurement)
    return Change(
        artifact=new.run.system,
        quality=verdict.compare(now, then, reference.truth),
        flips=sum(a != b for a, b in zip(then.labels, now.labels, strict=True)),
        clock=clock,
        not_timed=reason or (None if clock else f"fewer than {metrics.MIN_SAMPLES_P50} rows were timed in both"),
    )


def _answers(side: _Side, age: str, row_ids: Sequence[str]) -> Answers:
    found = artifact_answers(side.measurement, row_ids, side.run.system)
    return replace(found, name=f"{age} {side.run.system}")


def why_not_timed(old: Run, new: Run, there: Site, here: Site) -> str | None:
    """Why the two runs' clocks say nothing of the artifacts; None where they do."""
    for age, run, site in (("old", old, there), ("new", new, here)):
        if site.machine.emulated:
            return f"the {age} run was emulated"
        if run.validity == INVALID:
            return f"the {age} run is INVALID: {'; '.join(run.reasons) or 'no reason told'}"
    if _hardware(there) != _hardware(here):
        return f"other machines: {_called(there)} then, {_called(here)} now"
    if old.threads != new.threads:
        return f"other threads: {old.threads} then, {new.threads} now"
    return None


def _hardware(site: Site) -> tuple[object, ...]:
    device, machine = site.device, site.machine
    limits = (machine.profile, machine.memory_limit_bytes)
    return device.cpu_model, device.machine, device.isa, device.cores_usable, device.governor, *limits


def _called(site: Site) -> str:
    profile = f", {site.machine.profile}" if site.machine.profile else ""
    return f"{site.device.cpu_model or site.device.machine} with {site.device.cores_usable} cores{profile}"


def clock_of(old: Measurement, new: Measurement, seed: int = 0) -> Clock | None:
    """How the times of the same rows changed; None with fewer than 5 rows that both runs timed."""
    then, now = _times(old), _times(new)
    rows = [row for row in then if row in now]
    if len(rows) < metrics.MIN_SAMPLES_P50:
        return None
    ratio = median_ratio(
        np.array([np.median([ms for _, ms in now[row]]) / np.median([ms for _, ms in then[row]]) for row in rows]), seed
    )
    noise = max(LEAST_NOISE, _spread(then), _spread(now))
    slower, faster = ratio.low > 1 + noise, ratio.high < 1 / (1 + noise)
    return Clock(ratio, len(rows), noise, SLOWER if slower else FASTER if faster else SAME)


def _times(measurement: Measurement) -> dict[str, list[tuple[int, float]]]:
    """(round, milliseconds) of every timed request, by row."""
    found: dict[str, list[tuple[int, float]]] = {}
    for request in measurement.requests:
        if request.latency_ms:
            found.setdefault(request.row_id, []).append((request.round, request.latency_ms))
    return found


def _spread(times: dict[str, list[tuple[int, float]]]) -> float:
    """How far apart the rounds of one run are: each by the median of its rows' times over their own medians."""
    by_round: dict[int, list[float]] = {}
    for samples in times.values():
        middle = float(np.median([ms for _, ms in samples]))
        for number, ms in samples:
            by_round.setdefault(number, []).append(ms / middle)
    told = [float(np.median(each)) for each in by_round.values() if len(each) >= metrics.MIN_SAMPLES_P50]
    return max(told) / min(told) - 1 if told else 0.0


def median_ratio(ratios: NDArray[np.float64], seed: int) -> Estimate:
    """The median of N ratios with a bootstrap percentile interval over rows (10,000 resamples)."""
    rng, draws = np.random.default_rng(seed), []
    for start in range(0, metrics.RESAMPLES, CHUNK):
        count = min(CHUNK, metrics.RESAMPLES - start)
        draws.append(np.median(ratios[rng.integers(0, len(ratios), (count, len(ratios)))], axis=1))
    low, high = np.quantile(np.concatenate(draws), [0.025, 0.975])
    return Estimate(float(np.median(ratios)), float(low), float(high))


def _regressions(change: Change) -> list[str]:
    found = []
    if change.clock is not None and change.clock.outcome == SLOWER:
        found.append(f"{change.artifact} is slower: {change.clock.ratio.value:.2f} times the old time")
    if change.quality.outcome == verdict.LOSES:
        points = -100 * change.quality.difference.value
        found.append(f"{change.artifact} is worse: {points:.1f} points fewer rows right")
    return found


def change_lines(changes: Changes) -> list[str]:
    """What changed, as text: a block of lines an artifact."""
    words = {verdict.WINS: "better", verdict.LOSES: "worse", verdict.UNDECIDED: "no difference shown"}
    lines = []
    for change in changes.changes:
        q, clock = change.quality, change.clock
        value, low, high = (100 * x + 0.0 for x in (q.difference.value, q.difference.low, q.difference.high))
        lines.append(f"{change.artifact}, {changes.rows} rows")
        lines.append(
            f"  quality: {words[q.outcome]}, {value:+.1f} points [{low:+.1f}, {high:+.1f}], p {p_value(q.p_value)}; "
            f"{change.flips} labels differ, only new right {q.only_a}, only old right {q.only_b}"
        )
        if clock is None:
            lines.append(f"  time: not judged, {change.not_timed}")
        else:
            r = clock.ratio
            lines.append(
                f"  time: {clock.outcome}, {r.value:.3f} [{r.low:.3f}, {r.high:.3f}] of the old over {clock.rows} "
                f"rows; noise {100 * clock.noise:.0f} %"
            )
    return lines
