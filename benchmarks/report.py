"""The report as data: systems, comparisons, choice, runs, flips, cost, conditions. Draws nothing, runs no model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgestill.benchmarks.choice import Choice, best_of, candidates_of, choose
from edgestill.benchmarks.confusion import Confused, confusions
from edgestill.benchmarks.cost import Cost, cost_of
from edgestill.benchmarks.entrants import Entrant
from edgestill.benchmarks.flips import Apart, apart
from edgestill.benchmarks.measure import joint_sha256
from edgestill.benchmarks.measurement import INVALID, Machine, Measurement
from edgestill.benchmarks.recall import LabelRecall, NoneOfThese, none_of_these, recall_by_label
from edgestill.benchmarks.reference import Answers, Reference, artifact_answers, artifact_name
from edgestill.benchmarks.runs import Run, summarise
from edgestill.benchmarks.sets import SetScores, scores_by_label
from edgestill.benchmarks.systems import System, judge
from edgestill.benchmarks.validity import CONTENDED_PSI_PERCENT
from edgestill.benchmarks.verdict import Comparison, compare_all
from edgestill.benchmarks.written import WrittenScores, written_scores
from edgestill.runtime.bundle import MANIFEST_NAME
from edgestill.runtime.device import Device
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import LATER, sha256_file


@dataclass(frozen=True)
class Site:
    """A machine of the report: how it was reached, what it is, and when (UTC) it was measured on."""

    machine: Machine
    device: Device
    created: str


@dataclass(frozen=True)
class Conditions:
    """What the numbers hold for.

    `requests`, `rounds` and `threads` are the timed requests, the passes over the rows and the threads by system;
    `psi_cpu_some_avg10` is the highest of all runs, `contended` is None where no machine tells how long tasks waited;
    `build_versions` are those of each student's bundle.
    """

    rows: int
    requests: dict[str, int]
    rounds: dict[str, int]
    threads: dict[str, int]
    psi_cpu_some_avg10: float | None
    contended: bool | None
    build_versions: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Origin:
    """What a report is made of beside rows and measurements; see `Report` for the fields."""

    name: str
    created: str
    bundle_sha256: dict[str, str]
    build_versions: dict[str, dict[str, str]]
    teacher_license_note: str
    cost: Cost
    machines: tuple[Site, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of report.json. `judged_by` is gold or teacher; `bundle_sha256` of each bundle.json continues its chain.

    `bundle_sha256` and the versions at build are by student, and a system names its student. `choice` is None with a
    single candidate and with several machines, `none` for a task without such a label. With the `task_kind` multilabel
    `sets` has the labels' lines and `labels` and `confusions` have none; else `sets` is None.

    Schema 3 adds `machines`, `runs` (an artifact on a machine each), `apart` (an artifact on two machines),
    `confusions` and `cost`; `label_names` are the task's labels in their order. `left_out` says of each artifact that a
    machine could not run, why. Of the `task_kind` generate `match` says how answers are compared and `written` what is
    told of them; there and with `has_choices` `labels` and `confusions` are empty. Earlier reports lack these three.
    """

    schema: str = "edge-report/3"
    name: str
    created: str
    inputs_sha256: str
    bundle_sha256: dict[str, str]
    dataset_sha256: str
    judged_by: str
    task_kind: str
    label_names: tuple[str, ...]
    teacher_license_note: str
    machines: tuple[Site, ...]
    left_out: tuple[str, ...]
    systems: tuple[System, ...]
    choice: Choice | None
    comparisons: tuple[Comparison, ...]
    runs: tuple[Run, ...]
    apart: tuple[Apart, ...]
    cost: Cost
    labels: tuple[LabelRecall, ...]
    confusions: dict[str, tuple[Confused, ...]]
    sets: SetScores | None
    none: NoneOfThese | None
    conditions: Conditions
    match: str | None = field(default=None, metadata=LATER)
    has_choices: bool = field(default=False, metadata=LATER)
    written: WrittenScores | None = field(default=None, metadata=LATER)

    @property
    def has_classes(self) -> bool:
        """Whether a row has one label, which means the same in every row."""
        return not (self.is_multilabel or self.has_choices or self.match is not None)

    @property
    def has_gold(self) -> bool:
        """Whether answers were judged by gold labels, and not by the teacher's."""
        return self.judged_by == "gold"

    @property
    def is_multilabel(self) -> bool:
        """Whether an answer is a set of labels, and not one of them."""
        return self.task_kind == "multilabel"

    @property
    def invalid(self) -> tuple[Run, ...]:
        """The runs whose clock is not to be believed."""
        return tuple(run for run in self.runs if run.validity == INVALID)

    @property
    def students(self) -> tuple[str, ...]:
        """Names of the students, one a bundle."""
        return tuple(self.bundle_sha256)


def build_report(
    entrants: Sequence[Entrant],
    reference: Reference,
    measurements: Sequence[Measurement],
    device: Device,
    created: str,
    left_out: Sequence[str] = (),
) -> Report:
    """Compare what was measured with what the reference of the bundles holds.

    Args:
        entrants: the bundles, each of another student.
        reference: their `asked_rows`.
        measurements: one an artifact, by bundle, all made from these bundles on this device.
        device: the machine of the measurements.
        created: UTC time, ISO 8601.
        left_out: of each artifact that the machine could not run, why.

    Raises:
        EdgestillError: no measurement, or answers that do not cover the rows of the reference.
    """
    by_student = {entrant.bundle.student: entrant for entrant in entrants}
    if not measurements:
        raise EdgestillError(f"nothing was measured of {entrants[0].folder}", "run the same command again")
    origin = Origin(
        name=" and ".join(dict.fromkeys(entrant.bundle.name for entrant in entrants)),
        created=created,
        bundle_sha256={name: sha256_file(e.folder / MANIFEST_NAME) for name, e in by_student.items()},
        build_versions={name: e.bundle.versions for name, e in by_student.items()},
        teacher_license_note=str(entrants[0].bundle.teacher.get("license_note") or ""),
        cost=cost_of(entrants[0].bundle.teacher),
        machines=tuple(Site(machine, device, created) for machine in dict.fromkeys(m.machine for m in measurements)),
        left_out=tuple(left_out),
    )
    return assemble(origin, reference, measurements)


def asked_rows(reference: Reference, measurements: Sequence[Measurement]) -> Reference:
    """The reference of the rows that the machine was asked: all test rows, or those that its name limits them to.

    Rows that were asked and not answered are not left out here, so that they are missed.
    """
    first = measurements[0]
    limited = first.machine.emulated and first.machine.profile is not None  # emulated:CORE,rows=N
    return reference.only(request.row_id for request in first.requests) if limited else reference


def assemble(origin: Origin, reference: Reference, measurements: Sequence[Measurement]) -> Report:
    """The report of measurements, one or more, of the rows of `reference` on the machines of `origin`.

    Raises:
        EdgestillError: answers that do not cover the test rows.
    """
    alone, one_machine = len(origin.bundle_sha256) == 1, len(origin.machines) == 1
    names = [artifact_name(m, alone, None if one_machine else m.machine.name) for m in measurements]
    artifacts = [artifact_answers(m, reference.row_ids, name) for m, name in zip(measurements, names, strict=True)]
    candidates = candidates_of(reference, artifacts)
    rows = (reference.teacher, *reference.systems, *artifacts)
    return Report(
        name=origin.name,
        created=origin.created,
        inputs_sha256=joint_sha256(list(dict.fromkeys(m.inputs_sha256 for m in measurements))),
        bundle_sha256=origin.bundle_sha256,
        dataset_sha256=reference.dataset_sha256,
        task_kind=reference.task_kind,
        label_names=reference.labels,
        judged_by="teacher" if reference.gold is None else "gold",
        teacher_license_note=origin.teacher_license_note,
        machines=origin.machines,
        left_out=origin.left_out,
        systems=tuple(judge(answers, reference) for answers in rows),
        choice=choose(candidates, reference.truth) if _one_clock(origin) else None,
        comparisons=tuple(compare_all(reference, artifacts, best_of(candidates, reference.truth))),
        runs=tuple(summarise(m, a, reference) for m, a in zip(measurements, artifacts, strict=True)),
        apart=tuple(apart(reference, measurements, artifacts)),
        cost=origin.cost,
        labels=tuple(recall_by_label(reference, artifacts)),
        confusions=confusions(reference, artifacts),
        sets=scores_by_label(reference, artifacts),
        none=none_of_these(reference, artifacts),
        conditions=_conditions(origin, measurements, artifacts, len(reference.row_ids)),
        match=reference.match,
        has_choices=reference.has_choices,
        written=written_scores(reference, artifacts),
    )


def _one_clock(origin: Origin) -> bool:
    """Whether the floor, timed where the bundle was built, and the artifacts were timed on a machine of one kind."""
    (*others, site) = origin.machines
    return not others and site.machine.transport in ("local", "constrained")


def _conditions(
    origin: Origin, measurements: Sequence[Measurement], artifacts: Sequence[Answers], rows: int
) -> Conditions:
    told = [m.noise.psi_cpu_some_avg10 for m in measurements]
    psi = max((value for value in told if value is not None), default=None)
    by_name = dict(zip((a.name for a in artifacts), measurements, strict=True))
    return Conditions(
        rows=rows,
        requests={a.name: len(a.latencies_ms) for a in artifacts},
        rounds={name: 1 + max(r.round for r in m.requests) for name, m in by_name.items()},
        threads={name: m.threads for name, m in by_name.items()},
        psi_cpu_some_avg10=psi,
        contended=None if psi is None else psi > CONTENDED_PSI_PERCENT,
        build_versions=origin.build_versions,
    )
