"""Labels by hand that override the teacher's, without paying again. Reads one file, decides nothing else."""

from dataclasses import dataclass
from pathlib import Path

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

    Raises:
        EdgestillError: a label that is not allowed, a row that is not there, the same row twice with other labels, or
            a test row: the teacher's answers there are what is measured.
    """
    if recipe.data.corrections is None:
        return {}
    splits = {row.id: row.split for row in rows}
    found: dict[str, Correction] = {}
    for where, record in read_records(resolve(recipe_path, recipe.data.corrections), "train"):
        text = record.get("text")
        name = record.get("id") or (row_id(redacted(text, recipe.teacher.redact)[0]) if isinstance(text, str) else None)
        if name not in splits:
            raise EdgestillError(
                f"{where}: no row with id or text {record.get('id') or text!r}", "mend the corrections"
            )
        if splits[name] == "test":
            raise EdgestillError(
                f"{where}: row {name} is a test row, where the teacher itself is measured", "mend its gold in data.test"
            )
        if record.get("label") not in recipe.task.labels:
            raise EdgestillError(f"{where}: label {record.get('label')!r} is not one of {list(recipe.task.labels)}")
        correction = Correction(str(record["label"]), str(record["rationale"]) if record.get("rationale") else None)
        if found.setdefault(name, correction) != correction:
            raise EdgestillError(f"{where}: row {name} is corrected twice, differently", "keep one of the two lines")
    return found
