"""The verb bench: measure every artifact of some bundles on a machine, write the report. Resumes after a kill."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from edgestill.benchmarks.devices.machine import LOCAL, DeviceMachine, DoesNotFit, open_machine
from edgestill.benchmarks.entrants import Entrant, read_entrants
from edgestill.benchmarks.folder import REPORT_NAME, write_folder
from edgestill.benchmarks.measure import Placed, Progress, describe, inputs_sha256, joint_sha256, measure_artifact
from edgestill.benchmarks.measurement import Measurement
from edgestill.benchmarks.reference import read_reference
from edgestill.benchmarks.report import Report, asked_rows, build_report
from edgestill.runtime import manifest
from edgestill.runtime.bundle import changed_files
from edgestill.runtime.errors import EdgestillError, UsageError


def run_bench(bundles: Sequence[Path], out: Path, progress: Progress, device: str = LOCAL) -> tuple[Report, bool]:
    """Write rows.jsonl, samples.jsonl, report.md, report.html and, last, report.json into `out`.

    Args:
        bundles: folders of whole bundles, each of another student, all with the same test rows and teacher's answers.
        out: folder of the report, outside the bundles; one for each device.
        progress: called with (part, done, planned); a part is one of an artifact's stages.
        device: the machine to measure on, as `open_machine` knows it.

    Returns:
        The report, and whether it stood already.

    Raises:
        EdgestillError: a changed bundle, bundles that cannot be compared, a machine that is not reached, an artifact
            that does not run there, a disk that cannot be written.
        DoesNotFit: every artifact is too large for the machine's memory; when only some are, the report names them.
        UsageError: no bundle, two of one student, a report's folder in a bundle, or a device that is not known.
    """
    entrants = read_entrants(bundles)
    for entrant in entrants:
        _refuse(entrant, out)
    machine = open_machine(device)
    try:
        return _bench_on(machine, entrants, out, progress)
    finally:
        machine.close()


def _bench_on(
    machine: DeviceMachine, entrants: Sequence[Entrant], out: Path, progress: Progress
) -> tuple[Report, bool]:
    bundles, described = [entrant.folder for entrant in entrants], describe(machine)
    inputs = [inputs_sha256(bundle, described, machine.facts) for bundle in bundles]
    artifacts = sum(len(entrant.bundle.artifacts) for entrant in entrants)
    standing = _standing_report(out / REPORT_NAME, joint_sha256(inputs), artifacts)
    if standing is not None:
        return standing, True
    reference = read_reference(entrants)  # what cannot be compared is not measured
    _make_folder(out)
    placed = [Placed(machine, machine.place(bundle), of) for bundle, of in zip(bundles, inputs, strict=True)]
    measurements, samples, left_out = _measure_all(entrants, placed, out, progress)
    if not measurements:
        raise left_out[0]
    created, asked = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), asked_rows(reference, measurements)
    report = build_report(entrants, asked, measurements, described, created, [error.message for error in left_out])
    report = dataclasses.replace(report, inputs_sha256=joint_sha256(inputs))  # also of bundles that were left out
    write_folder(out, report, asked, measurements)
    for file in samples:
        file.unlink()
    return report, False


def _measure_all(
    entrants: Sequence[Entrant], placed: Sequence[Placed], out: Path, progress: Progress
) -> tuple[list[Measurement], list[Path], list[EdgestillError]]:
    """The measurement of every artifact that can run there, where each waits for the report, and why others cannot."""
    measurements, samples = [], []
    left_out: list[EdgestillError] = []
    for entrant, here in zip(entrants, placed, strict=True):
        for artifact in entrant.bundle.artifacts:
            file, called = _place(out, entrant, artifact.engine), entrant.call(artifact.engine)
            if artifact.engine in here.machine.lacks:
                left_out.append(EdgestillError(f"{called}: {here.machine.lacks[artifact.engine]}"))
                continue
            try:
                found = measure_artifact(here, entrant.bundle.student, artifact, file, progress, called)
            except DoesNotFit as error:
                left_out.append(error)
                continue
            measurements.append(found)
            samples.append(file)
    return measurements, samples, left_out


def _place(out: Path, entrant: Entrant, engine: str) -> Path:
    """Where an artifact's measurement waits for the report."""
    whose = "" if entrant.alone else f"{quote(entrant.bundle.student, safe='')}-"
    return out / f"samples-{whose}{engine}.jsonl"


def _refuse(entrant: Entrant, out: Path) -> None:
    if out.resolve().is_relative_to(entrant.folder.resolve()):
        raise UsageError(
            f"the report's folder {out} lies in the bundle and would change it", "name one outside with --out"
        )
    changed = changed_files(entrant.folder, entrant.bundle)
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise EdgestillError(f"{entrant.folder}: {changed[0]}{more}", "build the bundle again, or undo the change")


def _standing_report(path: Path, inputs: str, artifacts: int) -> Report | None:
    """The report of all artifacts of the same bundles on the same machine; one of another schema does not stand."""
    if not path.exists():
        return None
    try:
        report = manifest.load(Report, path)
    except EdgestillError:
        return None
    known = len(report.runs) + len(report.left_out) == artifacts
    return report if report.inputs_sha256 == inputs and known else None


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise manifest.disk_error(out, error) from error
    (out / REPORT_NAME).unlink(missing_ok=True)  # a folder with its manifest is whole; this one no longer is
