"""A few-shot prompt of the same teacher: worked examples below the instruction. What zero-shot is compared with."""

import json
from collections.abc import Sequence

from edgestill.distill.prompt_search.gold import GoldRow
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.forms import form_of
from edgestill.runtime import label_sets


def with_examples(recipe: Recipe, examples: Sequence[GoldRow]) -> str:
    """The recipe's instruction, and below it each text with the object that the teacher is to answer with.

    A reason stands in it where the row has one and the task wants one. They stand in the system turn, so that every
    other word of the request is the same as without them and the difference is what the examples do and cost.
    """
    form, order = form_of(recipe.task), recipe.teacher.rationale_order

    def answer(each: GoldRow) -> str:
        told: dict[str, object] = {"rationale": each.rationale}
        told[form.key] = list(label_sets.split(each.gold)) if recipe.task.is_multilabel else each.gold
        keys = form.keys(order if recipe.task.rationale and each.rationale else None)
        return json.dumps({key: told[key] for key in keys}, ensure_ascii=False)

    shown = [f"Text: {each.row.text}\nAnswer: {answer(each)}" for each in examples]
    return "\n\n".join([recipe.task.instruction, "Examples:", *shown])
