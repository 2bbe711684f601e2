"""From a plan to what its strategy works with: a teacher that may be asked in turns, fresh students. Asks nobody."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.plan import Plan
from edgestill.distill.select.turns import Fresh, Reopened
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.open import open_teacher
from edgestill.distill.teacher.protocol import Annotation, Teacher

Progress = Callable[[str, int, int], None]


def open_for(plan: Plan, folder: Path, rows: Sequence[Row]) -> Teacher:
    """The recipe's teacher, as its strategy asks: all at once, or in turns, with the smoke gate before the first alone.

    Raises:
        EdgestillError: see `open_teacher`.
    """
    recipe = plan.recipe

    def opened(first: bool, form: Form | None = None) -> Teacher:
        section = recipe.teacher if first else recipe.teacher.model_copy(update={"smoke_rows": 0})
        return open_teacher(recipe.model_copy(update={"teacher": section}), plan.recipe_path, folder, rows, form)

    return opened(True) if recipe.select.asks_all else Reopened(opened)


def fresh_student(plan: Plan, progress: Progress, texts: Sequence[str] = ()) -> Fresh:
    """What trains a strategy's students: the recipe's first one, as its sections say. Opens torch when called.

    `texts` show which layers matter where the student is to be cut before any row is answered.
    """

    def train(pairs: Sequence[tuple[Row, Annotation]], words: str) -> Any:
        from edgestill.distill.student.train import train_learner

        student = plan.students[0].cut([row.text for row, _ in pairs] or texts)
        told = lambda done, total: progress(f"select, {words}", done, total)  # noqa: E731
        learner, *_ = train_learner(student.recipe, student.base, student.task, student.tokenizer, pairs, progress=told)
        return learner

    return train
