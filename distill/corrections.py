"""Labels by hand that override the teacher's, without paying again. Reads one file, decides nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row, read_records, row_id
from edgestill.distill.recipe import Recipe, resolve
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.task import redacted


@dataclass(frozen=True)
class Correction:
    """The right label of a row, and a reason if one was written."""

    label: str
    rationale: str | None


def read_corrections(recipe: Recipe, recipe_path: Path, rows: tuple[Row, ...]) -> dict[str, Correction]:
    """Corrections by row id, from a file with `id` or `text`, `label`, and where wanted `rationale`.

    What `teacher.redact` hides in the rows may stand in `text`, and is hidden in `rationale` too.

    Raises:
        EdgestillError: a label that is not allowed, a row that is not there, the same row twice with other labels, or
            a test row: the teacher's answers there are what is measured.
    """
    if recipe.data.corrections is None:
        return {}
    path = Path(resolve(recipe_path, recipe.data.corrections))
    if not path.is_file():
        raise EdgestillError(f"data.corrections: no file {path}", "name a .jsonl, .csv or .parquet file")
    known = {row.id: row for row in rows}
    found: dict[str, Correction] = {}
    for where, record in read_records(str(path), "train"):
        name = _row_of(where, record, recipe, known)
        correction = _read(where, record, recipe, known[name].text)
        if found.setdefault(name, correction) != correction:
            raise EdgestillError(f"{where}: row {name} is corrected twice, differently", "keep one of the two lines")
    return found


def _row_of(where: str, record: dict[str, Any], recipe: Recipe, known: dict[str, Row]) -> str:
    """Id of the row that a record corrects."""
    name, text = record.get("id"), record.get("text")
    if not name and isinstance(text, str):
        name = row_id(redacted(text.strip(), recipe.teacher.redact)[0])
    if not isinstance(name, str) or name not in known:
        raise EdgestillError(
            f"{where}: no row that is asked about has the id or text {record.get('id') or text!r:.80}",
            "mend the corrections",
        )
    if known[name].split == "test":
        raise EdgestillError(
            f"{where}: row {name} is a test row, where the teacher itself is measured", "mend its gold in data.test"
        )
    return name


def _read(where: str, record: dict[str, Any], recipe: Recipe, text: str) -> Correction:
    rationale = str(record.get("rationale") or "").strip()
    try:
        label = recipe.task.read(record.get("label"), text)
    except EdgestillError as error:
        raise EdgestillError(f"{where}: {error.message}", "mend the corrections") from None
    return Correction(label, redacted(rationale, recipe.teacher.redact)[0] or None)
