"""Is this bundle still what was built, and does this machine answer as the trained weights did? Builds nothing."""

from dataclasses import dataclass
from pathlib import Path

from edgestill.runtime.bundle import changed_files, load_bundle
from edgestill.runtime.errors import GateFailed, MissingPackage
from edgestill.runtime.selfcheck import SelfCheck
from edgestill.runtime.student import load

MAX_LABELS_CHANGED_SHARE = 0.1


@dataclass(frozen=True)
class Verification:
    """What was checked: files by hash, golden rows by engine; `skipped` says what could not be checked here and why.

    `same_numbers` counts the tensors that ONNX and GGUF were found to agree on, None where that was not checked.
    """

    files: int
    engines: dict[str, SelfCheck]
    same_numbers: int | None
    skipped: tuple[str, ...]


def verify_bundle(folder: Path) -> Verification:
    """Check every hash, then let each engine that is installed answer the golden rows.

    Raises:
        GateFailed: a changed, missing or foreign file, an engine that changes more than a tenth of the labels, or no
            engine to ask.
        EdgestillError: a file that its engine cannot open.
    """
    bundle = load_bundle(folder)
    problems = changed_files(folder, bundle)
    if problems:
        raise GateFailed(f"{folder}: {problems[0]} ({len(problems)} in all)", "build or copy the bundle again")
    engines, skipped = {}, []
    for artifact in bundle.artifacts:
        try:
            check = load(folder, artifact.engine).selfcheck()
        except MissingPackage as error:
            skipped.append(f"{artifact.engine}: {error}")
            continue
        if check.labels_changed > MAX_LABELS_CHANGED_SHARE * check.rows:
            raise GateFailed(
                f"{artifact.engine}: {check.labels_changed} of {check.rows} golden answers differ on this machine"
            )
        engines[artifact.engine] = check
    if not engines:
        raise GateFailed(f"{folder}: no engine of this bundle is installed here; {'; '.join(skipped)}")
    return Verification(len(bundle.files), engines, None, tuple(skipped))
