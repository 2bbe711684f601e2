"""StudentRun: what a finished distillation leaves on disk, and where each part lies. No torch.

Layout of runs/NAME/student:
    student.json          the manifest, written last
    task.json             what is asked and how it is answered
    teacher_prompt.json   how the teacher was asked
    adapter/              a decoder's LoRA weights (peft) and training.json
    model/                or an encoder's weights, head and training.json
    grid/                 the weights as q4_0 codes and scales, the ones that ship, and grid.json
    dev.jsonl, test.jsonl rows: id, text, the teacher's label of dev rows and gold or null of test rows
    train.jsonl           id and text of the rows that were learnt from, for the export's gate of token ids
    teacher.jsonl         the teacher's answers on the test rows, for the report only
    predictions.jsonl     base, floor and student on the test rows, run with torch and scikit-learn
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import LATER

MANIFEST_NAME = "student.json"
GRID_FOLDER, GRID_NAME = "grid", "grid.safetensors"


@dataclass(frozen=True)
class StudentRun:
    """The manifest `student.json`.

    `base` is a `distill.base.Base` as a mapping; `training` is what the loop measured; `files` maps the names above to
    their SHA-256; `student` is what this one is called among those of its recipe. `grid` is what putting it on the q4_0
    grid measured, None where export rounds the weights itself.
    """

    name: str
    inputs_sha256: str
    recipe_sha256: str
    annotations_sha256: str
    recipe: dict[str, Any]
    base: dict[str, Any]
    teacher: dict[str, Any]
    training: dict[str, Any]
    rows: dict[str, int]
    files: dict[str, str]
    student: str = field(default="student", metadata=LATER)
    grid: dict[str, Any] | None = field(default=None, metadata=LATER)
    schema: str = "edgestill-student/1"


def clear_run(folder: Path, kept: str | None = None) -> None:
    """Delete what an earlier training left in `folder`, but not the folder in it that is called `kept`."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and path.name != kept:
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir():
            path.unlink(missing_ok=True)


def load_run(folder: Path) -> StudentRun:
    """Read a finished run and check that its files are the ones it lists.

    Raises:
        EdgestillError: no finished run there, or a file that was changed since.
    """
    run = manifest.load(StudentRun, folder / MANIFEST_NAME)
    for name, sha256 in run.files.items():
        if not (folder / name).is_file() or manifest.sha256_file(folder / name) != sha256:
            raise EdgestillError(f"{folder / name} is not the file that {MANIFEST_NAME} lists", "run train again")
    if not Path(run.base["folder"]).is_dir():
        raise EdgestillError(f"the base model's folder {run.base['folder']} is gone", "run train again")
    return run
