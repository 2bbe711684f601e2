"""The verb bench: measure every artifact of a bundle on this machine and write the report. Resumes after a kill."""

from datetime import UTC, datetime
from pathlib import Path

from edgestill.benchmarks.measure import Progress, inputs_sha256, measure_artifact, measurement_lines
from edgestill.benchmarks.reference import read_reference
from edgestill.benchmarks.render import html, markdown
from edgestill.benchmarks.report import Report, build_report
from edgestill.runtime import manifest
from edgestill.runtime.bundle import Bundle, changed_files, load_bundle
from edgestill.runtime.device import describe_device
from edgestill.runtime.errors import EdgestillError, UsageError

REPORT_NAME = "report.json"


def run_bench(bundle: Path, out: Path, progress: Progress) -> tuple[Report, bool]:
    """Write samples.jsonl, report.md, report.html and, last, report.json into `out`; (report, whether it stood).

    Args:
        bundle: folder of a whole bundle.
        out: folder of the report, outside the bundle.
        progress: called with (stage, requests done, requests planned).

    Raises:
        EdgestillError: a changed bundle, an artifact that does not run, a disk that cannot be written.
    """
    facts = load_bundle(bundle)
    _refuse(bundle, facts, out)
    inputs = inputs_sha256(bundle)
    standing = _standing_report(out / REPORT_NAME, inputs)
    if standing is not None:
        return standing, True
    read_reference(bundle, facts)  # what cannot be compared is not measured
    _make_folder(out)
    places = {artifact.engine: out / f"samples-{artifact.engine}.jsonl" for artifact in facts.artifacts}
    measurements = [measure_artifact(bundle, engine, place, progress) for engine, place in places.items()]
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    report = build_report(bundle, measurements, describe_device(), created)
    manifest.write_jsonl(out / "samples.jsonl", (line for m in measurements for line in measurement_lines(m)))
    manifest.write_text_atomic(out / "report.md", markdown(report))
    manifest.write_text_atomic(out / "report.html", html(report))
    manifest.save(out / REPORT_NAME, report)
    for place in places.values():
        place.unlink()
    return report, False


def _refuse(bundle: Path, facts: Bundle, out: Path) -> None:
    if out.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            f"the report's folder {out} lies in the bundle and would change it", "name one outside with --out"
        )
    changed = changed_files(bundle, facts)
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise EdgestillError(f"{bundle}: {changed[0]}{more}", "build the bundle again, or undo the change")


def _standing_report(path: Path, inputs: str) -> Report | None:
    """The report of the same bundle on the same machine; one of another schema does not stand."""
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
