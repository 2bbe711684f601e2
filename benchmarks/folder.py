"""A report's folder: written whole, and read back without the bundle. Knows the files and computes nothing.

report.json    the report, written last
rows.jsonl     one test row a line: text, gold, and what teacher, base, floor and torch answered
samples.jsonl  every artifact's run and requests, the answers of round 0 among them
report.html, report.md
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.benchmarks.measurement import Measurement
from edgestill.benchmarks.reference import Answers, Reference
from edgestill.benchmarks.render import html, markdown
from edgestill.benchmarks.report import Report
from edgestill.benchmarks.samples import measurement_lines, read_samples
from edgestill.benchmarks.systems import System
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

REPORT_NAME, ROWS_NAME, SAMPLES_NAME = "report.json", "rows.jsonl", "samples.jsonl"


@dataclass(frozen=True)
class Kept:
    """What a report's folder holds: enough to compute the report again, and to join it with others."""

    path: Path
    report: Report
    reference: Reference
    measurements: tuple[Measurement, ...]


def write_folder(out: Path, report: Report, reference: Reference, measurements: Sequence[Measurement]) -> None:
    """Write all files of a report; report.json last, so that a folder that has it is whole.

    Raises:
        EdgestillError: the disk cannot be written.
    """
    manifest.write_jsonl(out / ROWS_NAME, row_lines(reference))
    manifest.write_jsonl(out / SAMPLES_NAME, (line for m in measurements for line in measurement_lines(m)))
    manifest.write_text_atomic(out / "report.md", markdown(report))
    manifest.write_text_atomic(out / "report.html", html(report))
    manifest.save(out / REPORT_NAME, report)


def row_lines(reference: Reference) -> Iterator[dict[str, Any]]:
    """The lines of rows.jsonl."""
    teacher = _by_row(reference.teacher)
    systems = {answers.name: _by_row(answers) for answers in reference.systems}
    for i, row_id in enumerate(reference.row_ids):
        yield {
            "id": row_id,
            "text": reference.texts[i],
            "gold": None if reference.gold is None else reference.gold[i],
            "teacher": teacher[i],
            "systems": {name: rows[i] for name, rows in systems.items()},
        }


def _by_row(answers: Answers) -> list[dict[str, Any]]:
    """Label and milliseconds of each row; the milliseconds are None where the system was not timed on every row."""
    times: Sequence[float | None] = answers.latencies_ms
    if len(times) != len(answers.labels):
        times = [None] * len(answers.labels)
    return [{"label": label, "latency_ms": ms} for label, ms in zip(answers.labels, times, strict=True)]


def read_folder(path: Path) -> Kept:
    """Read a report's folder, named by itself or by its report.json.

    Raises:
        EdgestillError: a file is missing, is of another schema, or does not fit the others.
    """
    place = path if path.suffix == ".json" else path / REPORT_NAME
    report = manifest.load(Report, place)
    rows = list(manifest.read_jsonl(place.parent / ROWS_NAME))
    measurements = tuple(read_samples(place.parent / SAMPLES_NAME))
    if len(rows) != report.conditions.rows or len(measurements) != len(report.runs):
        raise EdgestillError(
            f"{place.parent} holds {len(rows)} rows and {len(measurements)} runs, its report is of "
            f"{report.conditions.rows} and {len(report.runs)}",
            "copy the whole folder again, or bench again",
        )
    try:
        return Kept(place, report, _reference(report, rows), measurements)
    except (KeyError, TypeError) as error:
        raise EdgestillError(f"{place.parent / ROWS_NAME} holds no test rows: {error!r}", "bench again") from None


def _reference(report: Report, rows: Sequence[dict[str, Any]]) -> Reference:
    told = {s.name: s for s in report.systems if s.kind in ("base", "floor", "student")}
    teacher = next(s for s in report.systems if s.kind == "teacher")
    return Reference(
        row_ids=tuple(row["id"] for row in rows),
        gold=tuple(row["gold"] for row in rows) if report.has_gold else None,
        labels=report.label_names,
        none=None if report.none is None else report.none.label,
        teacher=_answers(teacher, [row["teacher"] for row in rows]),
        systems=tuple(_answers(system, [row["systems"][name] for row in rows]) for name, system in told.items()),
        dataset_sha256=report.dataset_sha256,
        task_kind=report.task_kind,
        match=report.match,
        has_choices=report.has_choices,
        texts=tuple(row["text"] for row in rows),
    )


def _answers(system: System, rows: Sequence[dict[str, Any]]) -> Answers:
    return Answers(
        name=system.name,
        kind=system.kind,
        labels=tuple(row["label"] for row in rows),
        latencies_ms=tuple(row["latency_ms"] for row in rows if row["latency_ms"] is not None),
        measured=system.measured,
        note=system.note,
        bytes=system.bytes,
        load_s=system.load_s,
        peak_rss_bytes=system.peak_rss_bytes,
        api_usd_per_1000_requests=system.api_usd_per_1000_requests,
        student=system.student,
    )
