"""What one artifact did on one machine, summed up: distributions, calibration, and the gauges as they were read."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgestill.benchmarks.flips import Flip, flips_between, torch_of
from edgestill.benchmarks.measurement import Energy, GoldenCheck, Loads, Measurement, Memory, Noise, Thermal
from edgestill.benchmarks.reference import Answers, Reference
from edgestill.runtime import metrics

# Fewest samples with a distribution-free 95 % bound for the quantile, on its own side: 1 - 0.75**n >= 0.95.
MIN_SAMPLES_P75 = 11
CURVE_POINTS = 60


@dataclass(frozen=True)
class Distribution:
    """Milliseconds of `n` samples; a percentile that so few samples cannot tell is None."""

    n: int
    p10: float | None
    p25: float | None
    p50: float | None
    p75: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True)
class Calibration:
    """Whether the student knows what it does not know, over the `n` rows whose confidence is known.

    `error` is the expected calibration error; `coverage` and `risk` the curve: answering only that share of the rows,
    the surest first, that share of them is wrong. `area` is under all of the curve; the points here are thinned out.
    """

    n: int
    error: float
    area: float
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One artifact on one machine; `system` is its name in the table and `machine` the name of its machine.

    Speeds are None on an emulated machine. `validity` is valid, or invalid with `reasons`. `flips` are the rows that
    it answers otherwise than `flips_against`, both None where the bundle has no answers of torch.
    """

    system: str
    student: str
    engine: str
    path: str
    machine: str
    threads: int
    validity: str
    reasons: tuple[str, ...]
    latency_ms: Distribution
    ttft_ms: Distribution
    itl_ms: Distribution
    decoding_prompt_tokens: int | None
    prefill_tok_s: float | None
    decode_tok_s: float | None
    offline_rows_per_s: float | None
    loads: Loads
    memory: Memory
    energy: Energy
    thermal: Thermal
    noise: Noise
    golden: GoldenCheck
    calibration: Calibration | None
    flips_against: str | None
    flips: tuple[Flip, ...] | None


def summarise(measurement: Measurement, answers: Answers, reference: Reference) -> Run:
    """A measurement whose first round `answers` holds."""
    m, torch = measurement, torch_of(reference, measurement.student)
    return Run(
        system=answers.name,
        student=m.student,
        engine=m.engine,
        path=m.path,
        machine=m.machine.name,
        threads=m.threads,
        validity=m.validity,
        reasons=m.reasons,
        latency_ms=distribution(answers.latencies_ms),
        ttft_ms=distribution(m.decoding.ttft_ms),
        itl_ms=distribution(m.decoding.itl_ms),
        decoding_prompt_tokens=m.decoding.prompt_tokens,
        prefill_tok_s=m.decoding.prefill_tok_s,
        decode_tok_s=m.decoding.decode_tok_s,
        offline_rows_per_s=m.offline_rows_per_s,
        loads=m.loads,
        memory=m.memory,
        energy=m.energy,
        thermal=m.thermal,
        noise=m.noise,
        golden=m.golden,
        calibration=_calibration(m, reference),
        flips_against=None if torch is None else torch.name,
        flips=None if torch is None else flips_between(torch, answers, reference),
    )


def distribution(samples: Sequence[float]) -> Distribution:
    """The percentiles that `samples` can tell."""
    wanted = (
        (0.1, metrics.MIN_SAMPLES_P90),
        (0.25, MIN_SAMPLES_P75),
        (0.5, metrics.MIN_SAMPLES_P50),
        (0.75, MIN_SAMPLES_P75),
        (0.9, metrics.MIN_SAMPLES_P90),
        (0.99, metrics.MIN_SAMPLES_P99),
    )
    return Distribution(len(samples), *(metrics.quantile(samples, q, fewest) for q, fewest in wanted))


def _calibration(measurement: Measurement, reference: Reference) -> Calibration | None:
    """Of the first round; None where no confidence was told."""
    truth = dict(zip(reference.row_ids, reference.truth, strict=True))
    told = [
        (r.confidence, r.label == truth[r.row_id])
        for r in measurement.requests
        if r.round == 0 and r.confidence is not None
    ]
    confidences, right = [c for c, _ in told], [hit for _, hit in told]
    error = metrics.expected_calibration_error(confidences, right)
    coverage, risk = metrics.coverage_risk(confidences, right)
    area = metrics.area_under_risk(coverage, risk)
    if error is None or area is None:
        return None
    kept = thinned(len(coverage))
    return Calibration(len(told), error, area, tuple(coverage[i] for i in kept), tuple(risk[i] for i in kept))


def thinned(count: int) -> list[int]:
    """At most 60 places of `count`, evenly apart, the first and the last among them."""
    if count <= CURVE_POINTS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)})
