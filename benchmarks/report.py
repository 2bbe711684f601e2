"""The report as data: systems, comparisons, recall by label, conditions. Draws nothing and runs no model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgestill.benchmarks.measure import Measurement
from edgestill.benchmarks.reference import RECORDED, Answers, Reference, artifact_answers, read_reference
from edgestill.benchmarks.verdict import Comparison, compare_all
from edgestill.runtime import metrics
from edgestill.runtime.bundle import MANIFEST_NAME, Bundle, load_bundle
from edgestill.runtime.device import Device
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import sha256_file
from edgestill.runtime.metrics import Estimate

# From this share of waiting on, the clock's numbers are called contended.
CONTENDED_PSI_PERCENT = 10.0


@dataclass(frozen=True)
class System:
    """One row of the table; what is not known is None, never 0.

    `accuracy` is against gold, None without gold; `agreement` is with the teacher's labels, None for the teacher;
    `macro_f1` is against gold, or without gold against the teacher's labels. `latency_reason` says why a percentile is
    None. `measured` says where and when time and memory were taken. No price is paid per request to run a local
    system, so theirs is 0.0; energy is not measured.
    """

    name: str
    kind: str
    note: str
    measured: str
    accuracy: Estimate | None
    macro_f1: Estimate | None
    agreement: Estimate | None
    latency_samples: int
    latency_p50_ms: float | None
    latency_p90_ms: float | None
    latency_reason: str | None
    import_s: float | None
    load_s: float | None
    first_request_ms: float | None
    rss_after_load_bytes: int | None
    peak_rss_bytes: int | None
    bytes: int | None
    api_usd_per_1000_requests: float | None
    energy_j_per_request: float | None


@dataclass(frozen=True)
class LabelRecall:
    """The rows whose right label is `label`: how many (`n`), and which share each system found; None for n = 0."""

    label: str
    n: int
    recall: dict[str, Estimate | None]


@dataclass(frozen=True)
class Conditions:
    """What the numbers hold for.

    `requests` and `rounds` are the timed requests and the passes over the rows by system; `contended` is None where
    the machine does not tell how long tasks waited.
    """

    threads: int
    rows: int
    requests: dict[str, int]
    rounds: dict[str, int]
    page_cache: str
    psi_cpu_some_avg10: float | None
    contended: bool | None
    build_versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of report.json. `judged_by` is gold or teacher; `bundle_sha256` of bundle.json continues its chain."""

    schema: str = "edge-report/1"
    name: str
    created: str
    inputs_sha256: str
    bundle_sha256: str
    dataset_sha256: str
    judged_by: str
    teacher_license_note: str
    systems: tuple[System, ...]
    comparisons: tuple[Comparison, ...]
    labels: tuple[LabelRecall, ...]
    device: Device
    conditions: Conditions

    @property
    def has_gold(self) -> bool:
        """Whether answers were judged by gold labels, and not by the teacher's."""
        return self.judged_by == "gold"


def build_report(folder: Path, measurements: Sequence[Measurement], device: Device, created: str) -> Report:
    """Compare what was measured with what the bundle's reference holds.

    Args:
        folder: the bundle.
        measurements: one an artifact, all made from this bundle on this device.
        device: the machine of the measurements.
        created: UTC time, ISO 8601.

    Raises:
        EdgestillError: no measurement, or answers that do not cover the test rows.
    """
    if not measurements:
        raise EdgestillError(f"{folder} has no artifact to measure", "build the bundle again")
    bundle = load_bundle(folder)
    reference = read_reference(folder, bundle)
    artifacts = [artifact_answers(m, reference.row_ids) for m in measurements]
    rows = (reference.teacher, *reference.systems, *artifacts)
    return Report(
        name=bundle.name,
        created=created,
        inputs_sha256=measurements[0].inputs_sha256,
        bundle_sha256=sha256_file(folder / MANIFEST_NAME),
        dataset_sha256=reference.dataset_sha256,
        judged_by="teacher" if reference.gold is None else "gold",
        teacher_license_note=str(bundle.teacher.get("license_note") or ""),
        systems=tuple(judge(answers, reference) for answers in rows),
        comparisons=tuple(compare_all(reference, artifacts)),
        labels=tuple(recall_by_label(reference, artifacts, _task_labels(measurements[0]))),
        device=device,
        conditions=_conditions(bundle, measurements, artifacts, len(reference.row_ids)),
    )


def judge(answers: Answers, reference: Reference) -> System:
    """One system's row."""
    is_teacher = answers.kind == "teacher"
    judged_by_itself = is_teacher and reference.gold is None
    p50, p90, reason = _latency(answers)
    return System(
        name=answers.name,
        kind=answers.kind,
        note=answers.note,
        measured=answers.measured,
        accuracy=None if reference.gold is None else _share_equal(answers.labels, reference.gold),
        macro_f1=None if judged_by_itself else metrics.macro_f1(reference.truth, answers.labels),
        agreement=None if is_teacher else _share_equal(answers.labels, reference.teacher.labels),
        latency_samples=len(answers.latencies_ms),
        latency_p50_ms=p50,
        latency_p90_ms=p90,
        latency_reason=reason,
        import_s=answers.import_s,
        load_s=answers.load_s,
        first_request_ms=answers.first_request_ms,
        rss_after_load_bytes=answers.rss_after_load_bytes,
        peak_rss_bytes=answers.peak_rss_bytes,
        bytes=answers.bytes,
        api_usd_per_1000_requests=answers.api_usd_per_1000_requests,
        energy_j_per_request=None,
    )


def _share_equal(labels: Sequence[str], wanted: Sequence[str]) -> Estimate | None:
    return metrics.wilson(sum(a == b for a, b in zip(labels, wanted, strict=True)), len(wanted))


def _latency(answers: Answers) -> tuple[float | None, float | None, str | None]:
    """(p50, p90, why one of them is None)."""
    samples = answers.latencies_ms
    if answers.measured == RECORDED:
        return None, None, "recorded answers: nobody waited for them"
    p50 = metrics.quantile(samples, 0.5, metrics.MIN_SAMPLES_P50)
    p90 = metrics.quantile(samples, 0.9, metrics.MIN_SAMPLES_P90)
    fewest = metrics.MIN_SAMPLES_P50 if p50 is None else metrics.MIN_SAMPLES_P90
    return p50, p90, f"{len(samples)} timed requests, wanted {fewest}" if p90 is None else None


def recall_by_label(reference: Reference, artifacts: Sequence[Answers], labels: Sequence[str]) -> Iterator[LabelRecall]:
    """One line a label, the task's first: recall of the artifacts, and of the teacher where gold judges."""
    judged = [*artifacts] if reference.gold is None else [reference.teacher, *artifacts]
    for label in dict.fromkeys((*labels, *sorted(set(reference.truth)))):
        where = [i for i, wanted in enumerate(reference.truth) if wanted == label]
        found = {a.name: metrics.wilson(sum(a.labels[i] == label for i in where), len(where)) for a in judged}
        yield LabelRecall(label, len(where), found)


def _task_labels(measurement: Measurement) -> list[str]:
    """The task's labels in its order: every answer has a probability for each."""
    return list(measurement.requests[0].probabilities or {})


def _conditions(
    bundle: Bundle, measurements: Sequence[Measurement], artifacts: Sequence[Answers], rows: int
) -> Conditions:
    psi = max((m.psi_cpu_some_avg10 for m in measurements if m.psi_cpu_some_avg10 is not None), default=None)
    return Conditions(
        threads=measurements[0].threads,
        rows=rows,
        requests={a.name: len(a.latencies_ms) for a in artifacts},
        rounds={a.name: 1 + max(r.round for r in m.requests) for a, m in zip(artifacts, measurements, strict=True)},
        page_cache="as found: no cold load was attempted",
        psi_cpu_some_avg10=psi,
        contended=None if psi is None else psi > CONTENDED_PSI_PERCENT,
        build_versions=bundle.versions,
    )
