"""What bundles say of their test rows: gold, the teacher's answers, and those of the other systems. Runs no model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgestill.benchmarks.entrants import Entrant, shared_task
from edgestill.benchmarks.measure import Measurement
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

KINDS = ("base", "floor", "student")
AT_BUILD, HERE, RECORDED = "when the bundle was built", "here", "recorded"


@dataclass(frozen=True)
class Answers:
    """What one system answered on all N test rows, in their order, and what it took.

    `student` names the student that it belongs to, None for the teacher and the floor. `latencies_ms` may hold more
    than N samples (repeats) or none. `import_s`, `first_request_ms` and `rss_after_load_bytes` are known for artifacts
    only.
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


@dataclass(frozen=True)
class Reference:
    """The N test rows; `gold` is None when the recipe had none.

    `systems` are the base of every student, the floor, and every student in torch; `labels` are the task's, `none` is
    the one of them that means none of these, if one does. `task_kind` is the task's: with multilabel every answer is a
    set of labels, as `label_sets` writes it.
    """

    row_ids: tuple[str, ...]
    gold: tuple[str, ...] | None
    labels: tuple[str, ...]
    none: str | None
    teacher: Answers
    systems: tuple[Answers, ...]
    dataset_sha256: str
    task_kind: str

    @property
    def is_multilabel(self) -> bool:
        """Whether an answer is a set of labels, and not one of them."""
        return self.task_kind == "multilabel"

    @property
    def truth(self) -> tuple[str, ...]:
        """What answers are judged by: gold, or the teacher's labels where there is no gold."""
        return self.gold or self.teacher.labels


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
        none=task.none,
        teacher=_teacher(place / "teacher.jsonl", row_ids, first.bundle.teacher),
        systems=tuple(_one_floor(systems)),
        dataset_sha256=manifest.sha256_file(place / "test.jsonl"),
        task_kind=task.kind,
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
    names = {"base": entrant.base_name, "floor": "floor", "student": f"{entrant.title} torch"}
    by_system: dict[str, list[dict[str, Any]]] = {}
    for record in manifest.read_jsonl(path):
        by_system.setdefault(record["system"], []).append(record)
    for kind in (kind for kind in KINDS if kind in by_system):
        records = _in_order(by_system[kind], row_ids, f"{path} ({kind})")
        peaks = [r["peak_rss_bytes"] for r in records if r["peak_rss_bytes"] is not None]
        yield Answers(
            name=names[kind],
            kind=kind,
            student=None if kind == "floor" else entrant.bundle.student,
            labels=tuple(r["label"] for r in records),
            latencies_ms=tuple(float(r["latency_ms"]) for r in records if r["latency_ms"] is not None),
            measured=AT_BUILD,
            note=records[0]["note"],
            bytes=records[0]["bytes"],
            load_s=records[0]["load_s"],
            peak_rss_bytes=max(peaks, default=None),
        )


def _one_floor(systems: Sequence[Answers]) -> Iterable[Answers]:
    """All systems by their kind; of the floors, which bundles of one run have alike, the first."""
    floors = [answers for answers in systems if answers.kind == "floor"]
    for kind in KINDS:
        if kind != "floor":
            yield from (answers for answers in systems if answers.kind == kind)
        elif floors:
            differ = len({answers.labels for answers in floors}) > 1
            note = f"{floors[0].note} (of the first bundle; another holds other answers)" if differ else floors[0].note
            yield replace(floors[0], note=note)


def artifact_answers(entrant: Entrant, measurement: Measurement, row_ids: Sequence[str]) -> Answers:
    """A measurement of the entrant in the same form as the systems of the reference.

    Raises:
        EdgestillError: the measurement is of other rows.
    """
    first_round = ({"row_id": r.row_id, "label": r.label} for r in measurement.requests if r.round == 0)
    records = _in_order(first_round, row_ids, f"the measurement of {entrant.call(measurement.engine)}")
    return Answers(
        name=f"{entrant.title} {measurement.engine.upper()} {measurement.quantization}",
        kind="artifact",
        student=entrant.bundle.student,
        labels=tuple(r["label"] for r in records),
        latencies_ms=tuple(r.latency_ms for r in measurement.requests if r.latency_ms is not None),
        measured=HERE,
        note=measurement.path,
        bytes=measurement.bytes,
        load_s=measurement.load_s,
        peak_rss_bytes=measurement.peak_rss_bytes,
        import_s=measurement.import_s,
        first_request_ms=measurement.first_request_ms,
        rss_after_load_bytes=measurement.rss_after_load_bytes,
    )


def _in_order(records: Iterable[dict[str, Any]], row_ids: Sequence[str], where: str) -> list[dict[str, Any]]:
    by_row = {record["row_id"]: record for record in records}
    missing = [row_id for row_id in row_ids if row_id not in by_row]
    if missing:
        raise EdgestillError(
            f"{where} has no answer for {len(missing)} of {len(row_ids)} test rows, such as {missing[0]}",
            "build the bundle again",
        )
    return [by_row[row_id] for row_id in row_ids]
