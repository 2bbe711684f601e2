"""An experiment's folder: its finished cells read, and what they say together written beside them."""

from pathlib import Path

from edgestill.benchmarks.experiments.pictures import pictures
from edgestill.benchmarks.experiments.result import ExperimentResult, compared
from edgestill.benchmarks.experiments.table import markdown_page
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.experiment_files import (
    DONE_NAME,
    ExperimentCell,
    ExperimentDone,
    RowIds,
    cell_path,
    rows_path,
)

RESULT_NAME, TABLE_NAME = "experiment.json", "table.md"


def write_report(folder: Path) -> ExperimentResult:
    """Read the finished cells, write table.md, the pictures and, last, experiment.json.

    A picture whose horizontal figure no arm knows is not written, and one that an earlier run left is removed.

    Raises:
        EdgestillError: nothing is finished, or a file is missing or of another schema.
    """
    result = read_cells(folder)
    drawn = pictures(result)
    for name, svg in drawn.items():
        if svg is None:
            (folder / name).unlink(missing_ok=True)
        else:
            manifest.write_text_atomic(folder / name, svg)
    there = tuple(name for name, svg in drawn.items() if svg is not None)
    manifest.write_text_atomic(folder / TABLE_NAME, markdown_page(result, there))
    manifest.save(folder / RESULT_NAME, result)
    return result


def read_cells(folder: Path) -> ExperimentResult:
    """The experiment as its finished cells say it."""
    done = manifest.load(ExperimentDone, folder / DONE_NAME)
    cells = {
        arm.name: [manifest.load(ExperimentCell, cell_path(folder, arm.name, seed)) for seed in arm.seeds]
        for arm in done.arms
    }
    hashes = {cell.row_ids_sha256 for found in cells.values() for cell in found}
    if not hashes:
        raise EdgestillError(f"no cell of {folder} is finished", "type: edgestill experiment EXPERIMENT.yaml")
    ids = {one: manifest.load(RowIds, rows_path(folder, one)).ids for one in hashes}
    return compared(done, cells, ids)
