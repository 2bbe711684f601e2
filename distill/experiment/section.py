"""Experiment: one YAML file that names a recipe and says in what its arms differ. Reads it, runs nothing."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edgestill.distill.section import Section
from edgestill.distill.section_file import checked, read_mapping

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
Overrides = dict[str, Any]


class Experiment(Section):
    """A whole experiment; paths in it are relative to its file.

    Each arm is the recipe with the changes of `every_arm` and then its own, dotted (`train.epochs: 2`) or nested; a
    nested `select` with a `strategy` replaces the recipe's. Each seed sets `train.seed`, `select.seed` where the
    strategy has one and, with `split_seeds`, `data.seed`. `control: auto` adds a random arm with as many rows beside
    every strategy that chooses. `against` is the arm that the others are compared with: the one called "all", or the
    first. `metric` is what a right answer is: the gold label, or the teacher's where there is no gold. `gold_of_pool`,
    JSON lines of text and label, is for the label quality alone: no student learns from it. Without `keep_students` a
    finished cell's weights are deleted.
    """

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    recipe: str
    every_arm: Overrides = Field(default_factory=dict)
    arms: Annotated[dict[str, Overrides], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)] = (7, 8, 9)
    control: Literal["auto", False] = "auto"
    against: str | None = None
    split_seeds: bool = False
    metric: Literal["auto", "gold", "teacher"] = "auto"
    gold_of_pool: str | None = None
    keep_students: bool = True

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_is_the_recipe_itself(cls, arms: Any) -> Any:
        return {key: {} if value is None else value for key, value in arms.items()} if isinstance(arms, dict) else arms

    @field_validator("arms")
    @classmethod
    def _names_of_files(cls, arms: dict[str, Overrides]) -> dict[str, Overrides]:
        bad = next((name for name in arms if not re.fullmatch(NAME, name)), None)
        if bad is not None:
            raise ValueError(f"an arm is called {bad!r}, wanted letters, digits, dots, underscores and dashes")
        return arms

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("name each seed once")
        return seeds

    @model_validator(mode="after")
    def _against_an_arm(self) -> "Experiment":
        if self.against is not None and self.against not in self.arms:
            raise ValueError(f"against is {self.against!r}, wanted one of the arms {', '.join(self.arms)}")
        return self

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.against or ("all" if "all" in self.arms else next(iter(self.arms)))


def read_experiment(path: Path) -> Experiment:
    """Read and check an experiment file, but not the recipes of its arms: see `cells.plan_experiment`.

    Raises:
        UsageError: one line that names the first problem: missing file, not YAML, unknown key, bad value.
    """
    return checked(Experiment, read_mapping(path, "experiment", "it holds name, recipe and arms"), str(path))
