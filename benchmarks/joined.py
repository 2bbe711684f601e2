"""Several reports as one: devices and artifacts on the same rows. Measures nothing and needs no bundle."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgestill.benchmarks.folder import Kept, read_folder, write_folder
from edgestill.benchmarks.measurement import Measurement
from edgestill.benchmarks.reference import Answers, Reference, one_floor, system_name
from edgestill.benchmarks.report import Origin, Report, Site, assemble
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

Key = tuple[int, str]  # (number of the report, a name in it)


def join_reports(paths: Sequence[Path], out: Path) -> Report:
    """Write the report of all reports' devices and artifacts into the new or empty folder `out`.

    Raises:
        UsageError: fewer than two reports, or `out` holds something.
        EdgestillError: a folder that is not whole, reports of other rows, or one artifact twice on one machine.
    """
    if len(paths) < 2:
        raise UsageError(f"found {len(paths)} report, wanted two or more", "name their report.json files")
    kept = [read_folder(path) for path in paths]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder", "name a new folder with --out")
    report, reference, measurements = join(kept)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise manifest.disk_error(out, error) from error
    write_folder(out, report, reference, measurements)
    return report


def join(kept: Sequence[Kept]) -> tuple[Report, Reference, list[Measurement]]:
    """The report of all, and what it was computed from.

    A student keeps its name unless another bundle's has the same; then it is called by the name of its report. Machines
    that are called alike and are not the same get numbers.

    Raises:
        EdgestillError: reports of other rows, or one artifact twice on one machine.
    """
    for other in kept[1:]:
        check_same_rows(kept[0], other)
    students, (places, sites) = _students(kept), _sites(kept)
    measurements = [
        dataclasses.replace(
            m,
            student=students[number, m.student],
            machine=dataclasses.replace(m.machine, name=places[number, m.machine.name]),
        )
        for number, one in enumerate(kept)
        for m in one.measurements
    ]
    _check_once(measurements)
    bundles = {students[n, name]: sha for n, one in enumerate(kept) for name, sha in one.report.bundle_sha256.items()}
    versions = {
        students[n, name]: found
        for n, one in enumerate(kept)
        for name, found in one.report.conditions.build_versions.items()
    }
    first = kept[0].report
    origin = Origin(
        name=" and ".join(dict.fromkeys(one.report.name for one in kept)),
        created=max(one.report.created for one in kept),
        bundle_sha256=bundles,
        build_versions=versions,
        teacher_license_note=first.teacher_license_note,
        cost=first.cost,
        machines=tuple(sites),
        left_out=tuple(line for n, one in enumerate(kept) for line in _left_out(one.report, n, students, places)),
    )
    reference = _reference(kept, students, len(bundles) == 1)
    return assemble(origin, reference, measurements), reference, measurements


def _left_out(report: Report, number: int, students: Mapping[Key, str], places: Mapping[Key, str]) -> Iterator[str]:
    """What a report left out, with its machine and student where it does not name them itself."""
    for words in report.left_out:
        if len(report.machines) > 1:
            yield words
        else:
            names = [students[number, name] for name in report.students]
            yield f"{' and '.join(names)} on {places[number, report.machines[0].machine.name]}: {words}"


def check_same_rows(first: Kept, other: Kept) -> None:
    """Two reports may meet when rows, teacher's answers and labels are the same.

    Raises:
        EdgestillError: they are not; found and wanted are in the message.
    """
    a, b = first.reference, other.reference
    hint = "name reports of bundles built from the same annotations"
    if len(a.row_ids) != len(b.row_ids):
        hint = "bench both with the same test rows: all, or the same rows=N"
    if a.dataset_sha256 != b.dataset_sha256:
        raise EdgestillError(
            f"{other.path} is of test rows {b.dataset_sha256[:12]}, wanted those of {first.path}: "
            f"{a.dataset_sha256[:12]}",
            hint,
        )
    if a.teacher.labels != b.teacher.labels:
        differ = sum(x != y for x, y in zip(a.teacher.labels, b.teacher.labels, strict=True))
        raise EdgestillError(f"{other.path} has {differ} other answers of the teacher than {first.path}", hint)
    if (set(a.labels), a.none, a.task_kind, a.match) != (set(b.labels), b.none, b.task_kind, b.match):
        raise EdgestillError(f"{other.path} is of other labels than {first.path}", hint)


def _students(kept: Sequence[Kept]) -> dict[Key, str]:
    """What each report's students are called in the joint one; one bundle has one name."""
    by_sha: dict[str, str] = {}
    for one in kept:
        for student, sha256 in one.report.bundle_sha256.items():
            if sha256 in by_sha:
                continue
            for name in (student, one.report.name, f"{one.report.name} {student}", f"{student} {sha256[:8]}"):
                if name not in by_sha.values():
                    by_sha[sha256] = name
                    break
    return {(n, s): by_sha[sha] for n, one in enumerate(kept) for s, sha in one.report.bundle_sha256.items()}


def _sites(kept: Sequence[Kept]) -> tuple[dict[Key, str], list[Site]]:
    """What each report's machines are called in the joint one, and the machines, each once."""
    places: dict[Key, str] = {}
    sites: list[Site] = []
    for number, one in enumerate(kept):
        for site in one.report.machines:
            standing = next((s for s in sites if _same_machine(s, site)), None)
            if standing is None:
                standing = dataclasses.replace(site, machine=dataclasses.replace(site.machine, name=_free(sites, site)))
                sites.append(standing)
            places[number, site.machine.name] = standing.machine.name
    return places, sites


def _same_machine(standing: Site, site: Site) -> bool:
    """Names of standing machines may bear a number, so they are compared without."""
    a, b = (dataclasses.replace(s.machine, name="") for s in (standing, site))
    base = standing.machine.name.split(" #")[0]
    return (a, base, standing.device) == (b, site.machine.name.split(" #")[0], site.device)


def _free(sites: Sequence[Site], site: Site) -> str:
    taken, name = {s.machine.name for s in sites}, site.machine.name.split(" #")[0]
    return next(n for n in (name, *(f"{name} #{i}" for i in range(2, len(sites) + 3))) if n not in taken)


def _check_once(measurements: Sequence[Measurement]) -> None:
    seen = set()
    for m in measurements:
        key = (m.student, m.engine, m.path, m.machine.name)
        if key in seen:
            raise EdgestillError(
                f"two reports have measured the {m.engine} artifact of {m.student} on {m.machine.name}",
                "name one of them, or put both beside each other with: edgestill compare OLD NEW",
            )
        seen.add(key)


def _reference(kept: Sequence[Kept], students: Mapping[Key, str], alone: bool) -> Reference:
    """Rows and teacher of the first; base and torch of every student once, and one floor."""
    found: dict[str, Answers] = {}
    floors: list[Answers] = []
    for number, one in enumerate(kept):
        for answers in one.reference.systems:
            student = None if answers.student is None else students[number, answers.student]
            renamed = dataclasses.replace(answers, name=system_name(answers.kind, student, alone), student=student)
            if answers.kind == "floor":
                floors.append(renamed)
            else:
                found.setdefault(renamed.name, renamed)
    return dataclasses.replace(kept[0].reference, systems=tuple(one_floor([*found.values(), *floors])))
