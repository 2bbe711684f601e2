"""The report as data: systems, comparisons, choice, recall by label, conditions. Draws nothing and runs no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgestill.benchmarks.choice import Choice, best_of, candidates_of, choose
from edgestill.benchmarks.entrants import Entrant, read_entrants
from edgestill.benchmarks.measure import Measurement, joint_sha256
from edgestill.benchmarks.recall import LabelRecall, NoneOfThese, none_of_these, recall_by_label
from edgestill.benchmarks.reference import RECORDED, Answers, Reference, artifact_answers, read_reference
from edgestill.benchmarks.sets import SetScores, f1_over_labels, scores_by_label
from edgestill.benchmarks.verdict import Comparison, compare_all
from edgestill.runtime import metrics
from edgestill.runtime.bundle import MANIFEST_NAME
from edgestill.runtime.device import Device
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import sha256_file
from edgestill.runtime.metrics import Estimate

# From this share of waiting on, the clock's numbers are called contended.
CONTENDED_PSI_PERCENT = 10.0


@dataclass(frozen=True)
class System:
    """One row of the table; what is not known is None, never 0.

    `student` names the student that it belongs to, None for the teacher and the floor. `accuracy` is against gold, None
    without gold; `agreement` is with the teacher's labels, None for the teacher; `macro_f1` is against gold, or without
    gold against the teacher's labels. Of sets of labels accuracy and agreement count those that are equal as a whole,
    macro_f1 is over the labels, and so is `micro_f1`, None where a row has one label.

    `latency_reason` says why a percentile is None. `measured` says where and when time and memory were taken. No price
    is paid per request to run a local system, so theirs is 0.0; energy is not measured.
    """

    name: str
    kind: str
    student: str | None
    note: str
    measured: str
    accuracy: Estimate | None
    micro_f1: Estimate | None
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
class Conditions:
    """What the numbers hold for.

    `requests` and `rounds` are the timed requests and the passes over the rows by system; `contended` is None where
    the machine does not tell how long tasks waited; `build_versions` are those of each student's bundle.
    """

    threads: int
    rows: int
    requests: dict[str, int]
    rounds: dict[str, int]
    page_cache: str
    psi_cpu_some_avg10: float | None
    contended: bool | None
    build_versions: dict[str, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of report.json. `judged_by` is gold or teacher; `bundle_sha256` of each bundle.json continues its chain.

    Schema 2 holds several students: `bundle_sha256` and the versions at build are by student, and a system names its
    student. It also holds `choice`, None with a single candidate, and `none`, None for a task without such a label.
    With the `task_kind` multilabel `sets` has the labels' lines and `labels` has none; else `sets` is None.
    """

    schema: str = "edge-report/2"
    name: str
    created: str
    inputs_sha256: str
    bundle_sha256: dict[str, str]
    dataset_sha256: str
    judged_by: str
    task_kind: str
    teacher_license_note: str
    systems: tuple[System, ...]
    choice: Choice | None
    comparisons: tuple[Comparison, ...]
    labels: tuple[LabelRecall, ...]
    sets: SetScores | None
    none: NoneOfThese | None
    device: Device
    conditions: Conditions

    @property
    def has_gold(self) -> bool:
        """Whether answers were judged by gold labels, and not by the teacher's."""
        return self.judged_by == "gold"

    @property
    def is_multilabel(self) -> bool:
        """Whether an answer is a set of labels, and not one of them."""
        return self.task_kind == "multilabel"

    @property
    def students(self) -> tuple[str, ...]:
        """Names of the students, one a bundle."""
        return tuple(self.bundle_sha256)


def build_report(folders: Sequence[Path], measurements: Sequence[Measurement], device: Device, created: str) -> Report:
    """Compare what was measured with what the reference of the bundles holds.

    Args:
        folders: the bundles, each of another student.
        measurements: one an artifact, by bundle, all made from these bundles on this device.
        device: the machine of the measurements.
        created: UTC time, ISO 8601.

    Raises:
        EdgestillError: bundles that cannot be compared, no measurement, or answers that do not cover the test rows.
    """
    entrants = read_entrants(folders)
    by_student = {entrant.bundle.student: entrant for entrant in entrants}
    if not measurements:
        raise EdgestillError(f"nothing was measured of {folders[0]}", "run the same command again")
    reference = read_reference(entrants)
    artifacts = [artifact_answers(by_student[m.student], m, reference.row_ids) for m in measurements]
    candidates = candidates_of(reference, artifacts)
    rows = (reference.teacher, *reference.systems, *artifacts)
    return Report(
        name=" and ".join(dict.fromkeys(entrant.bundle.name for entrant in entrants)),
        created=created,
        inputs_sha256=joint_sha256(list(dict.fromkeys(m.inputs_sha256 for m in measurements))),
        bundle_sha256={name: sha256_file(e.folder / MANIFEST_NAME) for name, e in by_student.items()},
        dataset_sha256=reference.dataset_sha256,
        task_kind=reference.task_kind,
        judged_by="teacher" if reference.gold is None else "gold",
        teacher_license_note=str(entrants[0].bundle.teacher.get("license_note") or ""),
        systems=tuple(judge(answers, reference) for answers in rows),
        choice=choose(candidates, reference.truth),
        comparisons=tuple(compare_all(reference, artifacts, best_of(candidates, reference.truth))),
        labels=() if reference.is_multilabel else tuple(recall_by_label(reference, artifacts)),
        sets=scores_by_label(reference, artifacts),
        none=none_of_these(reference, artifacts),
        device=device,
        conditions=_conditions(entrants, measurements, artifacts, len(reference.row_ids)),
    )


def judge(answers: Answers, reference: Reference) -> System:
    """One system's row."""
    is_teacher = answers.kind == "teacher"
    judged_by_itself = is_teacher and reference.gold is None
    p50, p90, reason = _latency(answers)
    micro, macro = (None, None) if judged_by_itself else _f1(answers, reference)
    return System(
        name=answers.name,
        kind=answers.kind,
        student=answers.student,
        note=answers.note,
        measured=answers.measured,
        accuracy=None if reference.gold is None else _share_equal(answers.labels, reference.gold),
        micro_f1=micro,
        macro_f1=macro,
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


def _f1(answers: Answers, reference: Reference) -> tuple[Estimate | None, Estimate | None]:
    """(micro-F1, macro-F1); of one label a row micro-F1 is accuracy, which is told anyway."""
    if reference.is_multilabel:
        return f1_over_labels(answers, reference)
    return None, metrics.macro_f1(reference.truth, answers.labels)


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


def _conditions(
    entrants: Sequence[Entrant], measurements: Sequence[Measurement], artifacts: Sequence[Answers], rows: int
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
        build_versions={entrant.bundle.student: entrant.bundle.versions for entrant in entrants},
    )
