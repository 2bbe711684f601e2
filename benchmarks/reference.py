"""What bundles say of their test rows: gold, the teacher's answers, and those of the other systems. Runs no model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from edgestill.benchmarks.entrants import Entrant, shared_task
from edgestill.benchmarks.measurement import Measurement
from edgestill.runtime import label_sets, manifest
from edgestill.runtime.errors import EdgestillError

KINDS = ("base", "floor", "student")
AT_BUILD, HERE, RECORDED = "when the bundle was built", "here", "recorded"


@dataclass(frozen=True)
class Answers:
    """What one system answered on all N test rows, in their order, and what it took.

    `student` names the student that it belongs to, None for the teacher and the floor; `machine` where an artifact
    answered. `latencies_ms` may hold more than N samples (repeats) or none. `import_s`, `first_request_ms`,
    `rss_after_load_bytes`, `energy_j_per_request` and `validity` are known for artifacts only; `load_s` of an artifact
    is the median of its warm loads. `tokens_a_row` is the mean length of what it wrote, None where it writes nothing.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    latencies_ms: tuple[float, ...]
    measured: str
    note: str
    bytes: int | None = None
    load_s: float | None = None
    peak_rss_bytes: int | None = None
    import_s: float | None = None
    first_request_ms: float | None = None
    rss_after_load_bytes: int | None = None
    api_usd_per_1000_requests: float | None = 0.0
    student: str | None = None
    machine: str | None = None
    energy_j_per_request: float | None = None
    validity: str | None = None
    emulated: bool = False
    tokens_a_row: float | None = None


@dataclass(frozen=True)
class Reference:
    """The N test rows, their `texts` in the same order; `gold` is None when the recipe had none.

    `systems` are the base of every student, the floor, and every student in torch; `labels` are the task's, `none` is
    the one of them that means none of these, if one does. `task_kind` is the task's: with multilabel every answer is a
    set of labels, as `label_sets` writes it; with generate a canonical answer, compared as `match` says, and there are
    no labels. With `has_choices` the labels are letters, which mean something else in every row.
    """

    row_ids: tuple[str, ...]
    gold: tuple[str, ...] | None
    labels: tuple[str, ...]
    none: str | None
    teacher: Answers
    systems: tuple[Answers, ...]
    dataset_sha256: str
    task_kind: str
    texts: tuple[str, ...] = ()
    match: str | None = None
    has_choices: bool = False

    @property
    def has_classes(self) -> bool:
        """Whether a row has one label, which means the same in every row."""
        return not (self.is_multilabel or self.has_choices or self.match is not None)

    @property
    def is_multilabel(self) -> bool:
        """Whether an answer is a set of labels, and not one of them."""
        return self.task_kind == "multilabel"

    @property
    def truth(self) -> tuple[str, ...]:
        """What answers are judged by: gold, or the teacher's labels where there is no gold."""
        return self.gold or self.teacher.labels

    def only(self, row_ids: Iterable[str]) -> "Reference":
        """The reference of those of its rows that were asked; of other rows, so that its hash is another one."""
        asked = set(row_ids)
        if asked >= set(self.row_ids):
            return self
        kept = [i for i, row_id in enumerate(self.row_ids) if row_id in asked]
        pick = lambda values: tuple(values[i] for i in kept)  # noqa: E731 - of one value a row

        def cut(answers: Answers) -> Answers:
            timed = len(answers.latencies_ms) == len(self.row_ids)
            times = pick(answers.latencies_ms) if timed else ()  # of some rows: nobody knows which
            return replace(answers, labels=pick(answers.labels), latencies_ms=times)

        return replace(
            self,
            row_ids=pick(self.row_ids),
            gold=None if self.gold is None else pick(self.gold),
            texts=pick(self.texts),
            teacher=cut(self.teacher),
            systems=tuple(map(cut, self.systems)),
            dataset_sha256=manifest.sha256_json([self.dataset_sha256, pick(self.row_ids)]),
        )


def read_reference(entrants: Sequence[Entrant]) -> Reference:
    """Read the folders `reference` of all bundles as one; rows and teacher are those of the first.

    Raises:
        EdgestillError: bundles that are not judged alike, no test rows, gold on some rows only, or answers that do not
            cover the rows.
    """
    task, first = shared_task(entrants), entrants[0]
    place = first.folder / "reference"
    rows = list(manifest.read_jsonl(place / "test.jsonl"))
    if not rows:
        raise EdgestillError(f"{place / 'test.jsonl'} has no rows", "build the bundle again with test rows")
    row_ids = tuple(row["id"] for row in rows)
    gold = tuple(row["gold"] for row in rows)
    known = sum(label is not None for label in gold)
    if known not in (0, len(gold)):
        raise EdgestillError(f"{known} of {len(gold)} test rows have gold, wanted all or none", "mend the data")
    systems = [answers for entrant in entrants for answers in _systems(entrant, row_ids)]
    return Reference(
        row_ids=row_ids,
        gold=gold if known else None,
        labels=tuple(task.label_names),
        none=label_sets.EMPTY if task.is_multilabel else task.none,
        teacher=_teacher(place / "teacher.jsonl", row_ids, first.bundle.teacher),
        systems=tuple(one_floor(systems)),
        dataset_sha256=manifest.sha256_file(place / "test.jsonl"),
        task_kind=task.kind,
        match=task.match if task.is_written else None,
        has_choices=task.choices is not None,
        texts=tuple(str(row["text"]) for row in rows),
    )


def _teacher(path: Path, row_ids: Sequence[str], teacher: Mapping[str, Any]) -> Answers:
    records = _in_order(manifest.read_jsonl(path), row_ids, str(path))
    latencies = tuple(float(r["latency_ms"]) for r in records if r["latency_ms"] is not None)
    usd = teacher.get("usd_per_1000_requests")
    return Answers(
        name="teacher",
        kind="teacher",
        labels=tuple(r["label"] for r in records),
        latencies_ms=latencies,
        measured=AT_BUILD if latencies else RECORDED,
        note=f"{teacher['name']}, {teacher['kind']}",
        api_usd_per_1000_requests=None if usd is None else float(usd),
    )


def _systems(entrant: Entrant, row_ids: Sequence[str]) -> Iterable[Answers]:
    path = entrant.folder / "reference" / "predictions.jsonl"
    student, alone = entrant.bundle.student, entrant.alone
    by_system: dict[str, list[dict[str, Any]]] = {}
    for record in manifest.read_jsonl(path):
        by_system.setdefault(record["system"], []).append(record)
    for kind in (kind for kind in KINDS if kind in by_system):
        records = _in_order(by_system[kind], row_ids, f"{path} ({kind})")
        peaks = [r["peak_rss_bytes"] for r in records if r["peak_rss_bytes"] is not None]
        yield Answers(
            name=system_name(kind, student, alone),
            kind=kind,
            student=None if kind == "floor" else student,
            labels=tuple(r["label"] for r in records),
            latencies_ms=tuple(float(r["latency_ms"]) for r in records if r["latency_ms"] is not None),
            measured=AT_BUILD,
            note=records[0]["note"],
            bytes=records[0]["bytes"],
            load_s=records[0]["load_s"],
            peak_rss_bytes=max(peaks, default=None),
        )


def one_floor(systems: Sequence[Answers]) -> Iterable[Answers]:
    """All systems by their kind; of the floors, which bundles of one run have alike, the first."""
    floors = [answers for answers in systems if answers.kind == "floor"]
    for kind in KINDS:
        if kind != "floor":
            yield from (answers for answers in systems if answers.kind == kind)
        elif floors:
            differ = len({answers.labels for answers in floors}) > 1
            note = f"{floors[0].note} (of the first bundle; another holds other answers)" if differ else floors[0].note
            yield replace(floors[0], note=note)


def system_name(kind: str, student: str | None, alone: bool) -> str:
    """What the base, the floor or the torch weights of a student are called; `alone` says that there is no other."""
    if kind == "base":
        return "base" if alone else f"{student} base"
    return "floor" if kind == "floor" else f"{'student' if alone else student} torch"


def artifact_name(measurement: Measurement, alone: bool, machine: str | None) -> str:
    """Such as "student ONNX q4_0"; `machine` is the name of its machine where the report has several."""
    title = "student" if alone else measurement.student
    place = "" if machine is None else f" @ {machine}"
    return f"{title} {measurement.engine.upper()} {measurement.quantization}{place}"


def artifact_answers(measurement: Measurement, row_ids: Sequence[str], name: str) -> Answers:
    """A measurement in the same form as the systems of the reference.

    Raises:
        EdgestillError: the measurement is of other rows.
    """
    m = measurement
    first_round = ({"row_id": r.row_id, "label": r.label} for r in m.requests if r.round == 0)
    records = _in_order(first_round, row_ids, f"the measurement of {name}")
    return Answers(
        name=name,
        kind="artifact",
        student=m.student,
        machine=m.machine.name,
        labels=tuple(r["label"] for r in records),
        latencies_ms=tuple(r.latency_ms for r in m.requests if r.latency_ms is not None),
        measured=HERE,
        note=m.path,
        bytes=m.bytes,
        load_s=median(m.loads.warm_s) if m.loads.warm_s else None,
        peak_rss_bytes=m.memory.peak_rss_bytes,
        import_s=m.loads.import_s,
        first_request_ms=m.loads.first_request_ms,
        rss_after_load_bytes=m.memory.rss_after_load_bytes,
        energy_j_per_request=m.energy.net_j_per_request,
        validity=m.validity,
        emulated=m.machine.emulated,
        tokens_a_row=_tokens_a_row(m),
    )


def _tokens_a_row(measurement: Measurement) -> float | None:
    written = [r.tokens_written for r in measurement.requests if r.round == 0 and r.tokens_written is not None]
    return mean(written) if written else None


def _in_order(records: Iterable[dict[str, Any]], row_ids: Sequence[str], where: str) -> list[dict[str, Any]]:
    by_row = {record["row_id"]: record for record in records}
    missing = [row_id for row_id in row_ids if row_id not in by_row]
    if missing:
        raise EdgestillError(
            f"{where} has no answer for {len(missing)} of {len(row_ids)} test rows, such as {missing[0]}",
            "build the bundle again",
        )
    return [by_row[row_id] for row_id in row_ids]
