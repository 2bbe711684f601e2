"""What strategies that gate a training share: the keys of moving thresholds, and what they refuse. No numbers."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from edgestill.distill.select.selection import Selection

if TYPE_CHECKING:
    from edgestill.distill.recipe import Recipe


class GatedSelection(Selection):
    """A strategy that asks about every row and lets a gate choose at each step of training.

    `decay` l of the moving averages, l * old + (1 - l) * batch: at 0.98 they look back on some 50 steps, so that they
    have settled when a tenth of a run of 500 steps is over; FreeMatch's 0.999 wants runs of many thousands. A class of
    which every row was refused for `patience_steps` steps gets lower thresholds, by another factor of `decay` a step,
    until a row of it is selected. `weighted` false lets all selected rows count alike.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.98
    patience_steps: Annotated[int, Field(ge=1)] = 50
    weighted: bool = True

    @property
    def is_active(self) -> bool:
        """It chooses what is learnt from: see `Selection`."""
        return True

    def check(self, recipe: "Recipe") -> None:
        """See `Selection`: confidence and entropy are of one label among several."""
        if recipe.task.kind != "classify":
            raise ValueError(
                f"select.strategy {self.strategy} is for one label a row, but task.kind is {recipe.task.kind}; "
                "write strategy: all"
            )


def check_teacher(strategy: str, recipe: "Recipe") -> None:
    """Refuse an endpoint that is asked for labels alone, where the gate goes by the teacher's confidence.

    Raises:
        ValueError: one line. Whether recorded answers tell probabilities is seen before training.
    """
    teacher = recipe.teacher
    if teacher.kind == "openai" and not teacher.logprobs and not teacher.votes:
        raise ValueError(
            f"select.strategy {strategy} gates by the teacher's probabilities, but teacher.logprobs is false and "
            "teacher.votes is 0; write logprobs: true or votes: 5"
        )
