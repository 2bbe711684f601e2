"""The verb bench: measure every artifact of some bundles on this machine, write the report. Resumes after a kill."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from edgestill.benchmarks.entrants import Entrant, read_entrants
from edgestill.benchmarks.measure import Progress, inputs_sha256, joint_sha256, measure_artifact, measurement_lines
from edgestill.benchmarks.reference import read_reference
from edgestill.benchmarks.render import html, markdown
from edgestill.benchmarks.report import Report, build_report
from edgestill.runtime import manifest
from edgestill.runtime.bundle import changed_files
from edgestill.runtime.device import describe_device
from edgestill.runtime.errors import EdgestillError, UsageError

REPORT_NAME = "report.json"


def run_bench(bundles: Sequence[Path], out: Path, progress: Progress) -> tuple[Report, bool]:
    """Write samples.jsonl, report.md, report.html and, last, report.json into `out`; (report, whether it stood).

    Args:
        bundles: folders of whole bundles, each of another student, all with the same test rows and teacher's answers.
        out: folder of the report, outside the bundles.
        progress: called with (stage, requests done, requests planned); a stage is of one artifact.

    Raises:
        EdgestillError: a changed bundle, bundles that cannot be compared, an artifact that does not run, a disk that
            cannot be written.
        UsageError: no bundle, two of one student, or a report's folder in a bundle.
    """
    entrants = read_entrants(bundles)
    for entrant in entrants:
        _refuse(entrant, out)
    standing = _standing_report(out / REPORT_NAME, joint_sha256([inputs_sha256(bundle) for bundle in bundles]))
    if standing is not None:
        return standing, True
    read_reference(entrants)  # what cannot be compared is not measured
    _make_folder(out)
    work = [
        (entrant, a.engine, _place(out, entrant, a.engine)) for entrant in entrants for a in entrant.bundle.artifacts
    ]
    measurements = [measure_artifact(e.folder, engine, place, progress, e.call(engine)) for e, engine, place in work]
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    report = build_report(bundles, measurements, describe_device(), created)
    manifest.write_jsonl(out / "samples.jsonl", (line for m in measurements for line in measurement_lines(m)))
    manifest.write_text_atomic(out / "report.md", markdown(report))
    manifest.write_text_atomic(out / "report.html", html(report))
    manifest.save(out / REPORT_NAME, report)
    for _, _, place in work:
        place.unlink()
    return report, False


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


def _standing_report(path: Path, inputs: str) -> Report | None:
    """The report of the same bundles on the same machine; one of another schema does not stand."""
    if not path.exists():
        return None
    try:
        report = manifest.load(Report, path)
    except EdgestillError:
        return None
    return report if report.inputs_sha256 == inputs else None


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise manifest.disk_error(out, error) from error
    (out / REPORT_NAME).unlink(missing_ok=True)  # a folder with its manifest is whole; this one no longer is
