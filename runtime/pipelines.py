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
LOAD_OPTIONS = ("engine", "threads", "max_tokens")
# what code passes along that changes no answer here: rows are cut as the task says, whatever comes together
WITHOUT_EFFECT = ("device", "dtype", "torch_dtype", "framework", "batch_size", "num_workers", "truncation", "padding")

Scored = dict[str, Any]


class TextClassification:
    """What `pipeline` returns. `student` answers; see it for confidence, free text and what is loaded."""

    def __init__(self, student: Student, top_k: int | str | None = _UNSET) -> None:
        """`top_k` holds for every call that names none."""
        self.student = student
        self._top_k = top_k

    def __call__(self, inputs: Any, top_k: int | str | None = _UNSET, **options: Any) -> Any:
        """Label and score of each text, most likely first; of a task with sets of labels each label's own score.

        Args:
            inputs: a text, the template's fields by name, a list of either, or an iterator of either.
            top_k: so many labels a text, all for None. Without it, one.
            options: of transformers' that have no effect here: see `WITHOUT_EFFECT`.

        Returns:
            For a text `[{"label": ..., "score": ...}]`, for a list one such mapping a text; with `top_k` a list of
            mappings for a text, and one such list a text for a list. For an iterator, an iterator.

        Raises:
            UsageError: another option.
            EdgestillError: as `Student.predict`.
        """
        _check(options, ())
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
        options: of `load`: engine, threads, max_tokens; and those of transformers' in `WITHOUT_EFFECT`.

    Raises:
        UsageError: another task, another option, a device that is not the CPU, options of `load` beside a loaded
            student, or a student that writes its answer.
        EdgestillError: as `load`.
    """
    if task != TASK:
        raise UsageError(f"task {task!r}, wanted {TASK!r}", "for free text, load the bundle and call generate")
    _check(options, LOAD_OPTIONS)
    own = {name: value for name, value in options.items() if name in LOAD_OPTIONS}
    if isinstance(model, Student) and own:
        raise UsageError(f"options {sorted(own)} beside a loaded student", "give them to load")
    student = model if isinstance(model, Student) else load(model, **own)
    if student.task.is_written:
        raise UsageError("this student writes its answer, which has no labels to score", "load it and call predict")
    return TextClassification(student, top_k)


def _check(options: Mapping[str, Any], own: tuple[str, ...]) -> None:
    """Refuse what would be silently ignored although it means something."""
    unknown = next((name for name in options if name not in (*own, *WITHOUT_EFFECT)), None)
    if unknown is not None:
        known = ", ".join(("top_k", *own, *WITHOUT_EFFECT))
        raise UsageError(f"option {unknown!r} is not known here", f"leave it away; known: {known}")
    if str(options.get("device", "cpu")) not in ("cpu", "-1", "None"):
        raise UsageError(f"device {options['device']!r}, but a bundle runs on the CPU", "leave device away")


def _shaped(found: Prediction, top_k: int | str | None) -> Scored | list[Scored]:
    ranked = sorted(found.probabilities.items(), key=lambda item: item[1], reverse=True)
    scored = [{"label": label, "score": score} for label, score in ranked]
    if isinstance(top_k, str):
        return scored[0]
    return scored if top_k is None else scored[:top_k]
