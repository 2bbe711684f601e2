"""Students of rows that bring their own choices: trained to the end, sure of no letter that a row has no choice for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgestill.distill.dataset import Row
from edgestill.distill.floor import fit_floor, floor_chances
from edgestill.distill.plan import StudentPlan, make_plan
from edgestill.distill.select.rounds import agreement
from edgestill.distill.student.train import train_learner, train_student
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime.choices import with_choices

COLOURS = ["red", "green", "blue"]
KINDS = ["causal", "encoder"]


def pairs(count: int) -> list[tuple[Row, Annotation]]:
    """Rows of two or three choices, of which the last is always right."""
    made = []
    for i in range(count):
        text, letter = with_choices(f"thing {i} is", COLOURS[: 2 + i % 2]), "BC"[i % 2]
        made.append((Row(text, text, None, "train"), Annotation(text, letter, None, None, None, None, None, "")))
    return made


def student(recipe: Path, folder: Path) -> StudentPlan:
    """The only one of a recipe, whose task has choices now."""
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data["task"] = {"choices": "options", "most_choices": 4, "instruction": "Which?", "rationale": False}
    data["train"]["epochs"] = 1
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return make_plan(folder / "recipe.yaml").students[0]


def learner_of(plan: StudentPlan) -> Any:
    """As it starts out."""
    return train_learner(plan.recipe, plan.base, plan.task, plan.tokenizer, [])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_rows_with_choices_is_trained_to_the_end(
    tiny_recipes: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    plan = student(tiny_recipes[kind], tmp_path)
    parts = (plan.recipe, plan.base, plan.task, plan.tokenizer)
    facts = train_student(*parts, pairs(12), pairs(4), tmp_path / "student", "0f")
    assert facts.dev_rows == 4
    assert 0 <= facts.dev_agreement <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_letters_that_a_row_has_no_choice_for_get_nothing_in_training_too(
    tiny_recipes: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    texts = [row.text for row, _ in pairs(6)]
    learner = learner_of(student(tiny_recipes[kind], tmp_path))
    found = learner.probabilities(texts)
    assert found.shape == (6, 4)
    assert found.sum(1) == pytest.approx(np.ones(6))
    assert (found[0::2, 2:] == 0).all()
    assert (found[1::2, 3:] == 0).all()
    assert found[0::2, :2].min() > 0 < found[1::2, :3].min()
    assert learner.answers(texts) == ["ABCD"[i] for i in found.argmax(1)]


@pytest.mark.parametrize("kind", KINDS)
def test_of_no_texts_there_are_no_probabilities_and_no_agreement(tiny_recipes: dict[str, Path], kind: str) -> None:
    learner = learner_of(make_plan(tiny_recipes[kind]).students[0])
    assert learner.probabilities([]).shape == (0, 2)
    assert agreement(learner, []) is None


def test_the_floor_gives_nothing_to_letters_that_the_row_has_no_choice_for(
    tiny_recipes: dict[str, Path], tmp_path: Path
) -> None:
    task = student(tiny_recipes["causal"], tmp_path).task
    known = pairs(24)
    model, _, agreed = fit_floor(known, known, task)
    assert agreed == 1
    for row, answer in known:
        count, chances = len(task.choices_in(row.text)), floor_chances(model, task, row.text)
        assert chances[count:] == [0.0] * (4 - count)
        assert sum(chances) == pytest.approx(1)
        assert task.chosen(chances) == (answer.label,)
    only_c = [(row, answer) if i else (row, replace(answer, label="D")) for i, (row, answer) in enumerate(known[1::2])]
    model, _, _ = fit_floor(only_c, only_c, task)  # it knows no letter that a row of two choices has
    assert floor_chances(model, task, known[0][0].text) == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("rule", ["cut_tail", "refuse"])
def test_a_row_whose_choices_alone_are_too_long_does_not_fit(
    tiny_recipes: dict[str, Path], tmp_path: Path, rule: str
) -> None:
    plan = student(tiny_recipes["causal"], tmp_path)
    plan = replace(plan, task=replace(plan.task, max_text_tokens=24, too_long=rule))
    assert plan.fits(with_choices("short", COLOURS))
    assert plan.fits(with_choices("word " * 60, COLOURS)) == (rule == "cut_tail")
    assert not plan.fits(with_choices("short", ["word " * 30, "red"]))
