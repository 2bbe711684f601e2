"""experiment.json as data: what each arm learnt from, took and got right, and how far it is from another arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from edgestill.benchmarks.experiments.statistics import mean_difference, mean_right
from edgestill.runtime.experiment_files import ExperimentCell, ExperimentDone, unpack_bits
from edgestill.runtime.metrics import Estimate, mcnemar_exact

Rights = Mapping[str, bool]  # by row id


@dataclass(frozen=True)
class SeedResult:
    """One finished cell. Tokens and USD are those of training and development rows, prompt and completion together."""

    seed: int
    accuracy: Estimate
    rows_asked: int
    rows_learnt_from: int
    teacher_tokens: int | None
    teacher_usd: str | None
    test_teacher_tokens: int | None
    label_quality: float | None
    asked_quality: float | None
    training_tokens: int
    annotate_s: float
    train_s: float
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class ArmResult:
    """One arm over its finished seeds; means are over them, None where a seed's figure is unknown."""

    name: str
    strategy: str
    is_control: bool
    control: str | None
    accuracy: Estimate
    rows_asked: float
    rows_learnt_from: float
    teacher_tokens: float | None
    teacher_usd: str | None
    label_quality: float | None
    asked_quality: float | None
    annotate_s: float
    train_s: float
    peak_rss_bytes: int | None
    seeds: tuple[SeedResult, ...]


@dataclass(frozen=True)
class SeedDifference:
    """Two arms with one seed: rows that one of them alone has right, and McNemar's exact two-sided p-value."""

    seed: int
    difference: float
    only_arm: int
    only_against: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """Accuracy of `arm` minus that of `against`, on the `rows` that both answered, over the seeds that both have."""

    arm: str
    against: str
    difference: Estimate
    rows: int
    seeds: tuple[SeedDifference, ...]


@dataclass(frozen=True)
class ExperimentResult:
    """The file experiment.json. `missing` names the cells that are not finished, such as "entropy 7"."""

    name: str
    metric: str
    against: str
    seeds: tuple[int, ...]
    test_rows: tuple[int, ...]
    devices: tuple[str, ...]
    packages: dict[str, str]
    intervals: str
    arms: tuple[ArmResult, ...]
    differences: tuple[Difference, ...]
    missing: tuple[str, ...]
    schema: str = "edgestill-experiment/1"


INTERVALS = (
    "95 %; test rows and seeds both as samples (crossed random effects, Satterthwaite's degrees of freedom), Wilson's "
    "for one seed; differences are paired by row and seed; not adjusted for the number of comparisons"
)


def compared(
    done: ExperimentDone, cells: Mapping[str, Sequence[ExperimentCell]], ids: Mapping[str, Sequence[str]]
) -> ExperimentResult:
    """The experiment from its cells.

    Args:
        done: which arms there are.
        cells: the finished cells of each arm, at least one in all.
        ids: ids of test rows by their hash.
    """
    rights = {name: {cell.seed: _rights(cell, ids) for cell in found} for name, found in cells.items()}
    whole = [cell for found in cells.values() for cell in found]
    pairs = [(arm.name, done.against) for arm in done.arms if arm.name != done.against]
    pairs += [(arm.name, arm.control) for arm in done.arms if arm.control not in (None, done.against)]
    found = [_difference(arm, against, rights) for arm, against in pairs if against is not None]
    return ExperimentResult(
        name=done.name,
        metric=done.metric,
        against=done.against,
        seeds=done.seeds,
        test_rows=tuple(sorted({cell.test_rows for cell in whole})),
        devices=tuple(sorted({cell.device for cell in whole})),
        packages={name: version for cell in whole for name, version in cell.packages.items()},
        intervals=INTERVALS,
        arms=tuple(
            _arm(arm.name, arm.strategy, arm.is_control, arm.control, cells[arm.name], rights[arm.name])
            for arm in done.arms
            if cells[arm.name]
        ),
        differences=tuple(one for one in found if one is not None),
        missing=tuple(f"{arm.name} {seed}" for arm in done.arms for seed in done.seeds if seed not in arm.seeds),
    )


def _rights(cell: ExperimentCell, ids: Mapping[str, Sequence[str]]) -> Rights:
    return dict(zip(ids[cell.row_ids_sha256], unpack_bits(cell.right, cell.test_rows), strict=True))


def _arm(
    name: str,
    strategy: str,
    is_control: bool,
    control: str | None,
    cells: Sequence[ExperimentCell],
    rights: Mapping[int, Rights],
) -> ArmResult:
    seeds = tuple(_seed(cell) for cell in cells)
    peaks = [seed.peak_rss_bytes for seed in seeds if seed.peak_rss_bytes is not None]
    usd = [Decimal(seed.teacher_usd) for seed in seeds if seed.teacher_usd is not None]
    return ArmResult(
        name=name,
        strategy=strategy,
        is_control=is_control,
        control=control,
        accuracy=mean_right({seed: {one: float(r) for one, r in by.items()} for seed, by in rights.items()}),
        rows_asked=sum(seed.rows_asked for seed in seeds) / len(seeds),
        rows_learnt_from=sum(seed.rows_learnt_from for seed in seeds) / len(seeds),
        teacher_tokens=_mean([seed.teacher_tokens for seed in seeds]),
        teacher_usd=f"{sum(usd, Decimal()) / len(usd):.9f}" if len(usd) == len(seeds) else None,
        label_quality=_mean([seed.label_quality for seed in seeds]),
        asked_quality=_mean([seed.asked_quality for seed in seeds]),
        annotate_s=sum(seed.annotate_s for seed in seeds) / len(seeds),
        train_s=sum(seed.train_s for seed in seeds) / len(seeds),
        peak_rss_bytes=max(peaks, default=None),
        seeds=seeds,
    )


def _seed(cell: ExperimentCell) -> SeedResult:
    return SeedResult(
        seed=cell.seed,
        accuracy=cell.accuracy,
        rows_asked=cell.rows["asked"],
        rows_learnt_from=cell.rows["learnt_from"],
        teacher_tokens=_sum(cell.learning.prompt_tokens, cell.learning.completion_tokens),
        teacher_usd=cell.learning.usd,
        test_teacher_tokens=_sum(cell.testing.prompt_tokens, cell.testing.completion_tokens),
        label_quality=None if cell.label_quality is None else cell.label_quality.value,
        asked_quality=None if cell.asked_quality is None else cell.asked_quality.value,
        training_tokens=cell.training_tokens,
        annotate_s=cell.annotate_s,
        train_s=cell.train_s,
        peak_rss_bytes=cell.peak_rss_bytes,
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _difference(arm: str, against: str, rights: Mapping[str, Mapping[int, Rights]]) -> Difference | None:
    """The two on what both have; None where they share no seed or no row."""
    gains = dict[int, dict[str, float]]()
    for seed, mine in rights[arm].items():
        theirs = rights[against].get(seed, {})
        shared = {one: float(mine[one]) - float(theirs[one]) for one in mine if one in theirs}
        if shared:
            gains[seed] = shared
    if not gains:
        return None
    each = tuple(_seed_difference(seed, list(by_row.values())) for seed, by_row in gains.items())
    return Difference(arm, against, mean_difference(gains), max(len(by_row) for by_row in gains.values()), each)


def _seed_difference(seed: int, gains: Sequence[float]) -> SeedDifference:
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return SeedDifference(seed, sum(gains) / len(gains), better, worse, mcnemar_exact(better, worse))
