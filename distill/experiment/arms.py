"""From an experiment to its arms: each a recipe with its overrides, checked, and the random controls beside them.

Runs nothing and writes nothing.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.experiment.section import Experiment
from edgestill.distill.recipe import Recipe, check_recipe
from edgestill.distill.section_file import read_mapping
from edgestill.distill.select.selection import Selection
from edgestill.runtime.errors import UsageError

# What a cell never does: it measures the student as it was trained, and no other system beside it.
NEVER: dict[str, Any] = {"train": {"quantize_aware": False}, "bench": {"against": ["teacher"]}}


@dataclass(frozen=True)
class Arm:
    """`sections` is a recipe as a mapping; `control` is the arm beside a strategy that takes as many rows at random.

    A control that cannot know its number of rows before another arm is finished names that arm in `rows_of`, and in
    `rows_figure` which of its counts it is.
    """

    name: str
    sections: dict[str, Any]
    strategy: str
    control: str | None = None
    is_control: bool = False
    rows_of: str | None = None
    rows_figure: str = "asked"

    def sections_for(self, seed: int, split_seeds: bool, rows: int | None = None) -> dict[str, Any]:
        """The sections with a seed, and with a number of rows where another arm says it."""
        sections = copy.deepcopy(self.sections)
        if rows is not None:
            sections["select"] = {"strategy": "random", "rows": rows}
        sections["train"] = {**sections.get("train", {}), "seed": seed}
        if "seed" in type(check_recipe(sections, self.name).select).model_fields:
            sections["select"] = {**sections.get("select", {}), "seed": seed}
        if split_seeds:
            sections["data"] = {**sections["data"], "seed": seed}
        return sections


def plan_arms(experiment: Experiment, path: Path) -> tuple[Arm, ...]:
    """The arms in the order of the file, each control after the first arm that it stands beside.

    Args:
        experiment: what `path` holds.
        path: the experiment file; its recipe lies relative to it.

    Raises:
        UsageError: an arm that is no recipe, or two arms that are the same.
    """
    base = _of_one_student(read_mapping(path.parent / experiment.recipe, "recipe", "`edgestill example` writes one"))
    check_recipe(base, str(path.parent / experiment.recipe))
    base = _merged(base, _nested(experiment.every_arm))
    arms, recipes = dict[str, Arm](), dict[str, Recipe]()
    for name, overrides in experiment.arms.items():
        where = f"{path}: arm {name}"
        if any(isinstance(changes.get("student"), list) for changes in (overrides, experiment.every_arm)):
            raise UsageError(f"{where}: student is a list, wanted one student", "make an arm of each")
        sections = _of_one_student(_merged(_merged(base, _nested(overrides)), NEVER))
        arm = Arm(name, sections, check_recipe(sections, where).select.strategy)
        recipes[name] = _seeded(arm, experiment)
        same = next((other for other in arms if recipes[other] == recipes[name]), None)
        if same is not None:
            raise UsageError(f"{path}: the arms {same} and {name} are the same recipe", "remove one")
        arms[name] = arm
    return tuple(_with_controls(arms, recipes, experiment).values() if experiment.control else arms.values())


def _seeded(arm: Arm, experiment: Experiment) -> Recipe:
    """The arm's recipe with the first seed: what tells two arms apart, whatever seeds their recipes name."""
    return check_recipe(arm.sections_for(experiment.seeds[0], experiment.split_seeds), arm.name)


def _with_controls(arms: dict[str, Arm], recipes: dict[str, Recipe], experiment: Experiment) -> dict[str, Arm]:
    """The arms, and after each that chooses rows a random control, unless an arm is one already."""
    found, known = dict[str, Arm](), dict(recipes)
    for name, arm in arms.items():
        if not _chooses(recipes[name]):
            found[name] = arm
            continue
        control = _control_of(arm, recipes[name])
        wanted = None if control.rows_of else _seeded(control, experiment)
        same = next((other for other, recipe in known.items() if recipe == wanted), None)
        if same is None:
            taken = control.name in arms or control.name in found
            control = dataclasses.replace(control, name=f"{name}-random") if taken else control
        found[name] = dataclasses.replace(arm, control=same or control.name)
        if same is None:
            found[control.name] = control
            if wanted is not None:
                known[control.name] = wanted
    return found


def _chooses(recipe: Recipe) -> bool:
    """Whether the strategy asks about some rows only, or gates which of a batch are learnt from."""
    return recipe.select.is_active or type(recipe.select).gate is not Selection.gate


def _control_of(arm: Arm, recipe: Recipe) -> Arm:
    """As many rows at random: those that are asked about, or of a strategy that asks about all those learnt from.

    A strategy with a gate learns of it how many only while it trains: its control waits for it.
    """
    rows = getattr(recipe.select, "rows", None)
    if rows is None or type(recipe.select).gate is not Selection.gate:
        figure = "learnt_from" if recipe.select.asks_all else "asked"
        name = f"random-as-{arm.name}"
        return Arm(name, arm.sections, "random", is_control=True, rows_of=arm.name, rows_figure=figure)
    sections = {**arm.sections, "select": {"strategy": "random", "rows": rows}}
    return Arm(f"random-{rows}", sections, "random", is_control=True)


def _of_one_student(sections: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its first student alone, whose own `train` is the recipe's, without a seed and a grid.

    Otherwise it would win over what an arm says of `train`.
    """
    student = sections.get("student")
    first = student[0] if isinstance(student, list) and student else student
    if not isinstance(first, dict):
        return sections
    own, section = first.get("train"), sections.get("train", {})
    if not (isinstance(own, dict) and isinstance(section, dict)):
        return {**sections, "student": first}
    own = {key: value for key, value in own.items() if key not in ("seed", "quantize_aware")}
    alone = {key: value for key, value in first.items() if key != "train"}
    return {**sections, "student": alone, "train": _merged(section, own)}


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`a.b: 1` as `a: {b: 1}`."""
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        found = _merged(found, value, anew=False)
    return found


def _merged(sections: Mapping[str, Any], changes: Mapping[str, Any], anew: bool = True) -> dict[str, Any]:
    """`sections` with `changes`, key by key; with `anew` a `select` that names a strategy leaves no key of the old."""
    found = dict(sections)
    for key, value in changes.items():
        old = found.get(key)
        replaced = anew and key == "select" and isinstance(value, Mapping) and "strategy" in value
        mergeable = isinstance(old, Mapping) and isinstance(value, Mapping) and not replaced
        found[key] = _merged(old, value, anew) if mergeable else copy.deepcopy(value)  # type: ignore[arg-type]
    return found
