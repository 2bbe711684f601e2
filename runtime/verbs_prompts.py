"""The verb that looks for a better instruction for the teacher. Parses and prints; decides nothing."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from edgestill.runtime.errors import GateFailed
from edgestill.runtime.terminal import Json, Out, RecipeFile, answer

Gold = Annotated[
    Path,
    typer.Option(
        "--gold", metavar="FILE", help="Rows with text and gold that are no test rows: .jsonl, .csv, .parquet."
    ),
]


def search_prompts(recipe: RecipeFile, gold: Gold, out: Out = None, as_json: Json = False) -> None:
    """Look for a better instruction for the teacher. By rounds of its own proposals, under a cap; see prompt_search."""
    from edgestill.distill.prompt_search.search import search_prompts as search
    from edgestill.distill.recipe import read_recipe
    from edgestill.runtime.progress import stage

    folder = (out if out is not None else Path("runs") / read_recipe(recipe).name) / "prompt-search"
    with stage("prompts") as (tell, finish):
        found, stopped = search(recipe, gold, folder, tell)
        finish(f"{len(found.trials)} instructions tried, {folder / 'search.json'}")
    out_flag = f" --out {out}" if out is not None else ""
    again = f"edgestill search-prompts {recipe} --gold {gold}{out_flag}"
    answer(as_json, dataclasses.asdict(found), found.text, f"edgestill plan {recipe}" if stopped is None else again)
    if stopped is not None:
        raise stopped
    if found.chosen is None:
        raise GateFailed(
            f"none of {len(found.trials)} instructions meets the constraints",
            "lower prompt_search.min_explanation_rate or raise max_usd_per_label",
        )


PROMPT_VERBS = (search_prompts,)
