"""What a teacher is: something that answers a row with a label and a reason, or says why it cannot.

Kinds live in files of their own; the live endpoint is not here yet and is refused by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgestill.distill.dataset import Row
from edgestill.distill.recipe import Recipe, resolve
from edgestill.runtime.errors import UsageError


@dataclass(frozen=True)
class Annotation:
    """One accepted answer.

    `probabilities` is over the recipe's labels and sums to 1, or None when the teacher gives none. `latency_ms` is
    None for recorded or cached answers: nobody waited. `raw` is the answer as it came.
    """

    row_id: str
    label: str
    probabilities: dict[str, float] | None
    rationale: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_ms: float | None
    raw: str


@dataclass(frozen=True)
class Rejection:
    """One row that got no usable answer, and why; never a default label."""

    row_id: str
    reason: str
    detail: str
    raw: str


class Teacher(Protocol):
    """Answers rows one at a time.

    `fingerprint` changes whenever the answers may; it is part of what a finished annotation depends on.
    """

    name: str
    fingerprint: str

    def answer(self, row: Row) -> Annotation | Rejection:
        """The teacher's answer for one row."""
        ...


def open_teacher(recipe: Recipe, recipe_path: Path) -> Teacher:
    """The teacher that the recipe names.

    Raises:
        UsageError: a kind that this version cannot ask.
        EdgestillError: recorded answers that cannot be read.
    """
    if recipe.teacher.kind != "replay" or recipe.teacher.path is None:
        raise UsageError(
            f"teacher.kind {recipe.teacher.kind!r} cannot be asked by this version; supported: replay",
            "record the answers as JSON lines and set teacher: {kind: replay, path: FILE}",
        )
    from edgestill.distill.replay_teacher import ReplayTeacher

    return ReplayTeacher(Path(resolve(recipe_path, recipe.teacher.path)), recipe)
