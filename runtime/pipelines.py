"""A student where code expects a transformers text-classification pipeline: the same call, the same shapes back.

Shapes and the rules for `top_k` are those of `TextClassificationPipeline` in transformers 5.23.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgestill.runtime.errors import UsageError
from edgestill.runtime.prediction import Prediction
from edgestill.runtime.student import Student, load

TASK = "text-classification"
_UNSET = "unset"  # None means all labels

Scored = dict[str, Any]


class TextClassification:
    """What `pipeline` returns. `student` answers; see it for confidence, free text and what is loaded."""

    def __init__(self, student: Student, top_k: int | str | None = _UNSET) -> None:
        """`top_k` holds for every call that names none."""
        self.student = student
        self._top_k = top_k

    def __call__(self, inputs: Any, top_k: int | str | None = _UNSET) -> Any:
        """Label and score of each text, most likely first; of a task with sets of labels each label's own score.

        Args:
            inputs: a text, the template's fields by name, a list of either, or an iterator of either.
            top_k: so many labels a text, all for None. Without it, one.

        Returns:
            For a text `[{"label": ..., "score": ...}]`, for a list one such mapping a text; with `top_k` a list of
            mappings for a text, and one such list a text for a list. For an iterator, an iterator.

        Raises:
            EdgestillError: as `Student.predict`.
        """
        wanted = self._top_k if top_k == _UNSET else top_k
        if isinstance(inputs, str | Mapping):
            found = _shaped(self.student.predict(inputs), wanted)
            return [found] if isinstance(inputs, str) and top_k == _UNSET else found
        answers = self._each(inputs, wanted)
        return answers if isinstance(inputs, Iterator) else list(answers)

    def _each(self, inputs: Iterable[Any], top_k: int | str | None) -> Iterator[Scored | list[Scored]]:
        return (_shaped(found, top_k) for found in self.student.predict_many(inputs))


def pipeline(
    task: str, model: str | Path | Student, top_k: int | str | None = _UNSET, **options: Any
) -> TextClassification:
    """`transformers.pipeline("text-classification", model)` for a bundle.

    Args:
        task: "text-classification".
        model: folder of a bundle, or a loaded student.
        top_k: for every call that names none.
        options: of `load`: engine, threads, max_tokens.

    Raises:
        UsageError: another task, options beside a loaded student, or a student that writes its answer.
        EdgestillError: as `load`.
    """
    if task != TASK:
        raise UsageError(f"task {task!r}, wanted {TASK!r}", "for free text, load the bundle and call generate")
    if isinstance(model, Student) and options:
        raise UsageError(f"options {sorted(options)} beside a loaded student", "give them to load")
    student = model if isinstance(model, Student) else load(model, **options)
    if student.task.is_written:
        raise UsageError("this student writes its answer, which has no labels to score", "load it and call predict")
    return TextClassification(student, top_k)


def _shaped(found: Prediction, top_k: int | str | None) -> Scored | list[Scored]:
    ranked = sorted(found.probabilities.items(), key=lambda item: item[1], reverse=True)
    scored = [{"label": label, "score": score} for label, score in ranked]
    if isinstance(top_k, str):
        return scored[0]
    return scored if top_k is None else scored[:top_k]
