"""An experiment under way: which cells there are, which are finished, and the next one in a process of its own.

A finished cell is a file that is written last and whole: a kill loses the cell under way, and of that one only what
its own run has not kept. Draws nothing and compares nothing.
"""

import contextlib
import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.experiment.arms import Arm, plan_arms
from edgestill.distill.experiment.cell import RECIPE_NAME, Wanted
from edgestill.distill.experiment.places import anchored, gold_of_pool, input_hashes
from edgestill.distill.experiment.section import Experiment, read_experiment
from edgestill.distill.plan import make_plan
from edgestill.distill.recipe import check_recipe
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.experiment_files import DONE_NAME, ArmDone, ExperimentCell, ExperimentDone, cell_path

# Part of what a cell depends on: raise it when the same student would be measured otherwise.
CELL_VERSION = 2
# What changes no figure of a cell: a raised cap must not measure it again.
UNSEEN = ("name", "export", "budget", "prompt_search", "bench")
UNSEEN_OF_TEACHER = ("concurrency", "smoke_rows", "license_note")


@dataclass(frozen=True)
class Cell:
    """One arm with one seed; `waits_for` is the arm that must be finished first, with the same seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Such as "entropy 7"."""
        return f"{self.arm.name} {self.seed}"

    @property
    def waits_for(self) -> str | None:
        """The arm whose number of rows this cell takes."""
        return self.arm.rows_of


@dataclass(frozen=True)
class ExperimentRun:
    """A checked experiment and its folder; `hashes` are of each arm's files and base."""

    experiment: Experiment
    path: Path
    out: Path
    arms: tuple[Arm, ...]
    metric: str
    hashes: dict[str, dict[str, str]]

    @property
    def recipe_path(self) -> Path:
        """The recipe that the arms start from."""
        return self.path.parent / self.experiment.recipe

    def cells(self, only: Collection[str] = ()) -> tuple[Cell, ...]:
        """All cells, or those of some arms: a seed after another, so that arms can be compared early.

        Raises:
            UsageError: `only` names no arm.
        """
        names = [arm.name for arm in self.arms]
        unknown = next((name for name in only if name not in names), None)
        if unknown is not None:
            raise UsageError(f"there is no arm {unknown!r}", f"the arms are {', '.join(names)}")
        arms = [arm for arm in self.arms if not only or arm.name in only]
        return tuple(Cell(arm, seed) for seed in self.experiment.seeds for arm in arms)

    def finished(self, cell: Cell) -> ExperimentCell | None:
        """What the cell measured, None while it is not there or was measured with another recipe or other data."""
        path = cell_path(self.out, cell.arm.name, cell.seed)
        if not path.exists() or (cell.waits_for is not None and self._rows(cell) is None):
            return None
        found = manifest.load(ExperimentCell, path)
        return found if found.inputs_sha256 == self._inputs(cell)[1] else None

    def run(self, cell: Cell) -> ExperimentCell:
        """Measure the cell in a process of its own, so that its peak memory is its own.

        Raises:
            EdgestillError: the process failed, with its exit code; or an arm that it waits for is not finished.
        """
        if cell.waits_for is not None and self._rows(cell) is None:
            raise EdgestillError(f"{cell.name} takes its rows from {cell.waits_for}", "run that arm first")
        folder = self.out / "arms" / cell.arm.name / str(cell.seed)
        recipe_sha256, inputs_sha256 = self._inputs(cell)
        gold, places = self.experiment.gold_of_pool, (str(folder), str(self.out))
        pool = None if gold is None else str(self.path.parent / gold)
        wanted = Wanted(cell.arm.name, cell.seed, *places, self.metric, recipe_sha256, inputs_sha256, pool)
        with _alone(self.out) as lock:
            cell_path(self.out, cell.arm.name, cell.seed).unlink(missing_ok=True)
            manifest.write_json(folder / RECIPE_NAME, anchored(self._sections(cell), self.recipe_path))
            _in_its_own_process(cell.name, wanted, lock)
        if not self.experiment.keep_students:
            shutil.rmtree(folder / "student")
        return manifest.load(ExperimentCell, cell_path(self.out, cell.arm.name, cell.seed))

    def write_done(self) -> ExperimentDone:
        """Write down which cells are finished, for whoever reads the folder."""
        seeds = self.experiment.seeds
        arms = [
            ArmDone(
                arm.name,
                arm.strategy,
                arm.control,
                arm.is_control,
                tuple(seed for seed in seeds if self.finished(Cell(arm, seed)) is not None),
            )
            for arm in self.arms
        ]
        done = ExperimentDone(self.experiment.name, self.experiment.reference, seeds, self.metric, tuple(arms))
        manifest.save(self.out / DONE_NAME, done)
        return done

    def _rows(self, cell: Cell) -> int | None:
        """How many rows the arm that this one follows has asked about or learnt from, with the same seed."""
        followed = next(arm for arm in self.arms if arm.name == cell.waits_for)
        found = self.finished(Cell(followed, cell.seed))
        return None if found is None else found.rows[cell.arm.rows_figure]

    def _sections(self, cell: Cell) -> dict[str, Any]:
        rows = None if cell.waits_for is None else self._rows(cell)
        return cell.arm.sections_for(cell.seed, self.experiment.split_seeds, rows)

    def _inputs(self, cell: Cell) -> tuple[str, str]:
        """(hash of the cell's recipe, hash of everything that its figures depend on)."""
        checked = check_recipe(self._sections(cell), cell.name)
        recipe, version = checked.model_dump(mode="json"), checked.students[0].training_version
        teacher = {key: value for key, value in recipe["teacher"].items() if key not in UNSEEN_OF_TEACHER}
        seen = {key: recipe[key] for key in recipe if key not in UNSEEN}
        said = manifest.sha256_json(seen | {"teacher": teacher})
        return said, manifest.sha256_json([CELL_VERSION, version, said, self.metric, self.hashes[cell.arm.name]])


def open_experiment(path: Path, out: Path | None = None) -> ExperimentRun:
    """Check everything that can be known before any work: arms, files, bases, labels.

    Args:
        path: the experiment file.
        out: the experiment's folder; without it runs/NAME.

    Raises:
        EdgestillError: one line that names the arm and its problem.
    """
    experiment = read_experiment(path)
    arms, recipe_path = plan_arms(experiment, path), path.parent / experiment.recipe
    hashes = {}
    for arm in arms:
        if arm.rows_of is None:
            _check_plan(arm, recipe_path)
        hashes[arm.name] = input_hashes(arm.sections, recipe_path)
    if experiment.gold_of_pool is not None:
        pool = path.parent / experiment.gold_of_pool
        if not pool.is_file():
            raise UsageError(f"gold_of_pool: no file {pool}", "JSON lines of text and label")
        for arm in arms:
            gold_of_pool(pool, check_recipe(arm.sections, arm.name).task)
        hashes = {name: {**found, "gold_of_pool": manifest.sha256_file(pool)} for name, found in hashes.items()}
    return ExperimentRun(
        experiment, path, out or Path("runs") / experiment.name, arms, _metric(experiment, arms), hashes
    )


def _metric(experiment: Experiment, arms: tuple[Arm, ...]) -> str:
    has_gold = all(arm.sections["data"].get("gold") is not None for arm in arms)
    if experiment.metric == "gold" and not has_gold:
        raise UsageError("metric is gold, but the recipe names no data.gold", "write metric: teacher")
    return ("gold" if has_gold else "teacher") if experiment.metric == "auto" else experiment.metric


def _check_plan(arm: Arm, recipe_path: Path) -> None:
    """Prepare the arm's base and settle its task, as a run would."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / RECIPE_NAME
        manifest.write_json(path, anchored(arm.sections, recipe_path))
        make_plan(path)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[int]:
    """A lock on the experiment's folder. A cell's process inherits it, so that none is run beside an orphan.

    Raises:
        EdgestillError: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EdgestillError(
                f"another process works on {out}", "wait for its cell; the same command goes on"
            ) from None
        yield file.fileno()


def _in_its_own_process(name: str, wanted: Wanted, lock: int) -> None:
    command = [sys.executable, "-m", "edgestill.distill.experiment.cell", json.dumps(dataclasses.asdict(wanted))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=(lock,)) as process:
        try:
            _, said = process.communicate()
        except KeyboardInterrupt:  # the terminal has told the cell as well, which keeps what is paid for
            process.wait()
            raise
    if process.returncode:
        last = (said.strip().splitlines() or ["no message"])[-1]
        error = EdgestillError(f"{name}: {last}")
        error.exit_code = process.returncode if process.returncode > 0 else 1
        raise error
