"""One row of the report's table: what a system is worth and what it takes. Compares no two systems."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgestill.benchmarks.reference import RECORDED, Answers, Reference
from edgestill.benchmarks.sets import f1_over_labels
from edgestill.runtime import metrics
from edgestill.runtime.metrics import Estimate


@dataclass(frozen=True)
class System:
    """One row of the table; what is not known is None, never 0.

    `student` names the student that it belongs to, None for the teacher and the floor; `machine` where an artifact ran,
    and `validity` of that run, both None for others. `accuracy` is against gold, None
    without gold; `agreement` is with the teacher's labels, None for the teacher; `macro_f1` is against gold, or without
    gold against the teacher's labels. Of sets of labels accuracy and agreement count those that are equal as a whole,
    macro_f1 is over the labels, and so is `micro_f1`, None where a row has one label. Written answers are counted by
    their canonical spelling; they and a row's own choices have neither F1.

    `latency_reason` says why a percentile is None. `measured` says where and when time and memory were taken. No price
    is paid per request to run a local system, so theirs is 0.0; energy is net of the idle machine.
    """

    name: str
    kind: str
    student: str | None
    machine: str | None
    note: str
    measured: str
    validity: str | None
    accuracy: Estimate | None
    micro_f1: Estimate | None
    macro_f1: Estimate | None
    agreement: Estimate | None
    latency_samples: int
    latency_p50_ms: float | None
    latency_p90_ms: float | None
    latency_p99_ms: float | None
    latency_reason: str | None
    import_s: float | None
    load_s: float | None
    first_request_ms: float | None
    rss_after_load_bytes: int | None
    peak_rss_bytes: int | None
    bytes: int | None
    api_usd_per_1000_requests: float | None
    energy_j_per_request: float | None


def judge(answers: Answers, reference: Reference) -> System:
    """One system's row."""
    is_teacher = answers.kind == "teacher"
    judged_by_itself = is_teacher and reference.gold is None
    p50, p90, p99, reason = _latency(answers)
    micro, macro = (None, None) if judged_by_itself else _f1(answers, reference)
    return System(
        name=answers.name,
        kind=answers.kind,
        student=answers.student,
        machine=answers.machine,
        note=answers.note,
        measured=answers.measured,
        validity=answers.validity,
        accuracy=None if reference.gold is None else _share_equal(answers.labels, reference.gold),
        micro_f1=micro,
        macro_f1=macro,
        agreement=None if is_teacher else _share_equal(answers.labels, reference.teacher.labels),
        latency_samples=len(answers.latencies_ms),
        latency_p50_ms=p50,
        latency_p90_ms=p90,
        latency_p99_ms=p99,
        latency_reason=reason,
        import_s=answers.import_s,
        load_s=answers.load_s,
        first_request_ms=answers.first_request_ms,
        rss_after_load_bytes=answers.rss_after_load_bytes,
        peak_rss_bytes=answers.peak_rss_bytes,
        bytes=answers.bytes,
        api_usd_per_1000_requests=answers.api_usd_per_1000_requests,
        energy_j_per_request=answers.energy_j_per_request,
    )


def _f1(answers: Answers, reference: Reference) -> tuple[Estimate | None, Estimate | None]:
    """(micro-F1, macro-F1); of one label a row micro-F1 is accuracy, which is told anyway.

    Both None without labels that mean the same in every row.
    """
    if reference.is_multilabel:
        return f1_over_labels(answers, reference)
    if not reference.has_classes:
        return None, None
    return None, metrics.macro_f1(reference.truth, answers.labels)


def _share_equal(labels: Sequence[str], wanted: Sequence[str]) -> Estimate | None:
    return metrics.wilson(sum(a == b for a, b in zip(labels, wanted, strict=True)), len(wanted))


def _latency(answers: Answers) -> tuple[float | None, float | None, float | None, str | None]:
    """(p50, p90, p99, why p50 or p90 is None)."""
    samples = answers.latencies_ms
    if answers.emulated:
        return None, None, None, "an emulated machine says nothing of speed"
    if answers.measured == RECORDED:
        return None, None, None, "recorded answers: nobody waited for them"
    p50 = metrics.quantile(samples, 0.5, metrics.MIN_SAMPLES_P50)
    p90 = metrics.quantile(samples, 0.9, metrics.MIN_SAMPLES_P90)
    p99 = metrics.quantile(samples, 0.99, metrics.MIN_SAMPLES_P99)
    fewest = metrics.MIN_SAMPLES_P50 if p50 is None else metrics.MIN_SAMPLES_P90
    return p50, p90, p99, f"{len(samples)} timed requests, wanted {fewest}" if p90 is None else None
