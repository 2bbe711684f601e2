"""The files of an experiment: distill writes a cell after another, benchmarks reads them. Computes nothing.

Layout of the experiment's folder:
    cells/ARM-SEED.json     one finished cell, written last and whole
    rows/HASH.json          ids of the test rows that a cell's bits are about, once for all cells that share them
    done.json               the arms in order, and which cells are finished and of today's experiment
    arms/ARM/SEED/          recipe.yaml, annotations/ and student/ of a cell, as a run leaves them
    experiment.json, table.md, accuracy-by-rows.svg, accuracy-by-teacher-tokens.svg
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.runtime.metrics import Estimate

DONE_NAME = "done.json"


@dataclass(frozen=True)
class TeacherUse:
    """What answers took when they were made, whoever paid: tokens and decimal USD; None where it is unknown."""

    prompt_tokens: int | None
    completion_tokens: int | None
    usd: str | None


@dataclass(frozen=True)
class ExperimentCell:
    """One arm with one seed.

    `rows` counts the training rows: asked, accepted, rejected, not_selected, pending, learnt_from. `learning` is what
    the teacher took for training and development rows, `testing` for test rows. `annotate_s` holds what a strategy
    trains while it asks; `train_s` and `training_tokens` are of the student that is measured. `right` holds a bit a
    test row in the order of `row_ids`, see `pack_bits`; `metric` says whether it is right by gold or by the teacher.
    `label_quality` is the share of the rows learnt from whose label is that of the pool's gold, `asked_quality` that
    of all accepted rows; None where the experiment names no gold of the pool. `selection` and `gate` are what a
    strategy recorded.
    """

    arm: str
    seed: int
    recipe_sha256: str
    inputs_sha256: str
    annotations_sha256: str
    rows: dict[str, int]
    learning: TeacherUse
    testing: TeacherUse
    training_tokens: int
    training_rows: int
    annotate_s: float
    train_s: float
    peak_rss_bytes: int | None
    metric: str
    test_rows: int
    row_ids_sha256: str
    right: str
    accuracy: Estimate
    label_quality: Estimate | None
    asked_quality: Estimate | None
    selection: dict[str, Any] | None
    gate: dict[str, Any] | None
    device: str
    packages: dict[str, str]
    schema: str = "edgestill-experiment-cell/1"


@dataclass(frozen=True)
class RowIds:
    """Ids of test rows, sorted."""

    ids: tuple[str, ...]
    schema: str = "edgestill-experiment-rows/1"


@dataclass(frozen=True)
class ArmDone:
    """An arm and the seeds that are finished; `control` names the random arm beside an active strategy."""

    name: str
    strategy: str
    control: str | None
    is_control: bool
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class ExperimentDone:
    """Everything finished so far: the last file of a run. `against` is the arm that the others are compared with."""

    name: str
    against: str
    seeds: tuple[int, ...]
    metric: str
    arms: tuple[ArmDone, ...]
    schema: str = "edgestill-experiment-done/1"


def cell_path(folder: Path, arm: str, seed: int) -> Path:
    """Where a finished cell lies."""
    return folder / "cells" / f"{arm}-{seed}.json"


def rows_path(folder: Path, row_ids_sha256: str) -> Path:
    """Where the ids of a cell's test rows lie."""
    return folder / "rows" / f"{row_ids_sha256[:16]}.json"


def pack_bits(right: Sequence[bool]) -> str:
    """A bit a row as hexadecimal text, the first row in the highest bit of N."""
    return f"{int(''.join('01'[one] for one in right) or '0', 2):x}"


def unpack_bits(text: str, rows: int) -> list[bool]:
    """What `pack_bits` was given; `rows` is N."""
    return [bit == "1" for bit in f"{int(text, 16):0{rows}b}"] if rows else []
