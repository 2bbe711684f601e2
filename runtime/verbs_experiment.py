"""Arms by seeds of one recipe, run and compared. Parses, tells a line a cell, prints; measures nothing itself."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.terminal import Json, Out, answer

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Experiment file (YAML).")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="ARM", help="This arm's cells; may be repeated.")]
List = Annotated[bool, typer.Option("--list", help="Name the cells and which are finished; run none.")]


def experiment(
    file: ExperimentFile, out: Out = None, only: Only = None, as_list: List = False, as_json: Json = False
) -> None:
    """Run a recipe's arms over several seeds and compare them. Run again, it goes on where it stopped."""
    from edgestill.benchmarks.experiments.folder import write_report
    from edgestill.benchmarks.experiments.table import terminal_text
    from edgestill.distill.experiment.run import open_experiment

    run = open_experiment(file, out)
    cells = run.cells(only or ())
    if as_list:
        _tell_list(run, cells, as_json, f"edgestill experiment {file}" + (f" --out {out}" if out else ""))
        return
    failures = [(cell.name, error) for cell in cells if (error := _failure(run, cell)) is not None]
    if any(arm.seeds for arm in run.write_done().arms):
        report = write_report(run.out)
        answer(as_json, dataclasses.asdict(report), terminal_text(report), f"open {run.out / 'table.md'}")
    if failures:
        name, first = failures[0]
        told = EdgestillError(f"{len(failures)} of {len(cells)} cells failed; {name}: {first.message}", first.hint)
        told.exit_code = first.exit_code
        raise told


def _failure(run: Any, cell: Any) -> EdgestillError | None:
    """Measure the cell; what went wrong, for the other cells do not depend on it."""
    try:
        _measure(run, cell)
    except EdgestillError as error:
        return error
    return None


def _measure(run: Any, cell: Any) -> None:
    """Run the cell unless it is finished; one line on stderr."""
    from edgestill.runtime.progress import stage

    with stage(cell.name) as (_, finish):
        found = run.finished(cell)
        if found is None:
            found, before = run.run(cell), ""
        else:
            before = ", done before"
        share = found.accuracy
        rows = found.rows["learnt_from"]
        finish(f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] from {rows:,} rows{before}")


def _tell_list(run: Any, cells: Any, as_json: bool, following: str) -> None:
    lines = [{"arm": c.arm.name, "seed": c.seed, "finished": run.finished(c) is not None} for c in cells]
    text = "\n".join(f"{'done' if one['finished'] else 'open'}  {one['arm']} {one['seed']}" for one in lines)
    answer(as_json, {"cells": lines}, text, following)


EXPERIMENT_VERBS = (experiment,)
