"""The verbs around the teacher: init, import, plan, annotate, rejects, row. Parses and prints; decides nothing else."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from edgestill.runtime.errors import EdgestillError, GateFailed, UsageError
from edgestill.runtime.stages import Stages
from edgestill.runtime.terminal import Json, Out, RecipeFile, Strict, answer

RunOf = Annotated[
    Path | None,
    typer.Argument(metavar="[RECIPE]", help="Whose run; default: the only one in runs/.", show_default=False),
]


def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Rows: .jsonl, .csv or .parquet.")],
    out: Annotated[Path, typer.Option("--out", metavar="RECIPE", help="New recipe file.")] = Path("recipe.yaml"),
    name: Annotated[str | None, typer.Option(help="Name of the recipe; default: from the file.")] = None,
    labels_only: Annotated[bool, typer.Option("--labels-only", help="No reasons: an encoder is proposed.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented recipe from a data file. It guesses text and labels and says what is left to fill in."""
    from edgestill.distill.propose import propose_recipe
    from edgestill.runtime.manifest import write_text_atomic

    if out.exists():
        raise UsageError(f"{out} exists already", "name a new file with --out")
    proposal = propose_recipe(data, name, out, rationale=not labels_only)
    write_text_atomic(out, proposal.text)
    facts = {"recipe": str(out)} | {k: v for k, v in dataclasses.asdict(proposal).items() if k != "text"}
    answer(as_json, facts, "\n".join([f"Wrote {out}", *proposal.notes]), f"edgestill plan {out}")


def import_(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Chat completions, pairs or a batch's output: .jsonl, .csv, .parquet."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
    prompt: Annotated[str, typer.Option(help="How a row became a prompt; {text} is the row.")] = "{text}",
    requests: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The input file of a batch, when FILE is its output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn stored answers into a replay teacher. Writes rows (pool.jsonl) and answers (teacher.jsonl)."""
    from edgestill.distill.imports import import_answers

    facts = import_answers(source, folder, prompt, requests)
    skipped = "".join(f"\nskipped {count}: {why}" for why, count in facts.skipped.items())
    text = f"{facts.read} read, {facts.kept} kept in {folder}{skipped}"
    recipe = folder / "recipe.yaml"
    answer(as_json, dataclasses.asdict(facts), text, f"edgestill init {folder / 'pool.jsonl'} --out {recipe}")


def plan(recipe: RecipeFile, out: Out = None, as_json: Json = False) -> None:
    """Show rows, tokens, money and the first prompt. Says what will be built; spends nothing."""
    from edgestill.distill.estimate import estimate

    stages = Stages(recipe, out)
    facts = estimate(stages.plan)
    answer(as_json, dataclasses.asdict(facts), facts.text, f"edgestill annotate {recipe}{stages.out_flag}")


def annotate(recipe: RecipeFile, out: Out = None, as_json: Json = False, strict: Strict = False) -> None:
    """Ask the teacher about every row. Each ends accepted, rejected with a reason, or pending."""
    stages = Stages(recipe, out, strict)
    ledger, stopped = stages.annotate()
    verb = "train" if stopped is None else "rejects" if isinstance(stopped, GateFailed) else "annotate"
    following = f"edgestill {verb} {recipe}{stages.out_flag}"
    answer(as_json, dataclasses.asdict(ledger), ledger.summary, following)
    if stopped is not None:
        raise stopped


def rejects(
    recipe: RunOf = None,
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 20,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Show rows without a usable answer. Why, what the teacher said, what it cost."""
    from edgestill.distill.show import rejected_rows

    folder = _annotations(recipe, out)
    facts = rejected_rows(folder, reason, limit)
    first = facts.rows[0]["id"] if facts.rows else "ID"
    answer(as_json, dataclasses.asdict(facts), facts.text, f"edgestill row {first}{_run_words(recipe, out)}")


def row(
    row_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a row, or its beginning.")],
    recipe: RunOf = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Show all that is known about one row. Text, split, raw answer, parse, cost."""
    from edgestill.distill.show import one_row

    found = one_row(_annotations(recipe, out), row_id)
    answer(as_json, found.facts, found.text, f"edgestill rejects{_run_words(recipe, out)}")


def _annotations(recipe: Path | None, out: Path | None) -> Path:
    """The annotations of a recipe's run, of a run's folder, or of the only run in runs/.

    Raises:
        EdgestillError: none there, or several.
    """
    if out is not None:
        return out / "annotations"
    if recipe is not None and recipe.is_dir():
        return recipe / "annotations"
    if recipe is not None:
        from edgestill.distill.recipe import read_recipe

        return Path("runs") / read_recipe(recipe).name / "annotations"
    found = sorted(path.parent for path in Path("runs").glob("*/annotations/annotations.json"))
    if len(found) != 1:
        names = ": " + ", ".join(path.parent.name for path in found[:5]) if found else ""
        raise EdgestillError(
            f"{len(found)} annotated runs in runs/, wanted 1{names}", "name the recipe, or the run with --out DIR"
        )
    return found[0]


def _run_words(recipe: Path | None, out: Path | None) -> str:
    return (f" {recipe}" if recipe is not None else "") + (f" --out {out}" if out is not None else "")


import_.__name__ = "import"
TEACHER_VERBS: tuple[Any, ...] = (init, import_, plan, annotate, rejects, row)
