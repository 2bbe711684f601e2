"""The recipe's section `prompt_search`: how `edgestill search-prompts` looks for a better instruction, and its cap."""

from decimal import Decimal
from typing import Annotated

from pydantic import Field, field_validator

from edgestill.distill.section import Section
from edgestill.distill.teacher.section import BudgetSection


class PromptSearchSection(Section):
    """Rounds of asking the teacher for better instructions than `task.instruction` and those of `instructions`.

    The objective: the highest accuracy on `rows` rows with gold, among instructions of which at least
    `min_explanation_rate` of the usable answers have a reason (where the task wants reasons) and a usable label costs
    at most `max_usd_per_label`. `temperature` is of the requests that write instructions. `examples` worked examples
    make the few-shot prompt that is compared with; 0: none. Without a `budget` the recipe's caps hold for the search.
    """

    instructions: Annotated[tuple[str, ...], Field(strict=False)] = ()
    rounds: Annotated[int, Field(ge=0)] = 5
    candidates: Annotated[int, Field(ge=1, le=64)] = 4
    rows: Annotated[int, Field(ge=2)] = 50
    examples: Annotated[int, Field(ge=0)] = 5
    min_explanation_rate: Annotated[float, Field(ge=0, le=1)] = 0.9
    max_usd_per_label: Annotated[Decimal, Field(gt=0, strict=False)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    seed: int = 7
    budget: BudgetSection | None = None

    @field_validator("instructions")
    @classmethod
    def _say_something(cls, instructions: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.strip() for text in instructions):
            raise ValueError("an instruction is blank")
        return instructions
