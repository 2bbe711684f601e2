"""Quantization-aware distillation: a trained student learns, on the q4_0 grid, to answer as it did in float32.

First every layer is rounded so that its outputs change least (`gptq`); then what the grid does not round, norms and
biases, learns through the rounded layers by the divergence from the student's own float32 answers, and is kept as
learnt where that brought held-out rows nearer. What is saved are codes and scales: nobody rounds again.
"""

import random
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from edgestill.distill.dataset import Row
from edgestill.distill.plan import StudentPlan
from edgestill.distill.run import GRID_NAME
from edgestill.distill.student.grid_students import GRID_STUDENTS, GridStudent
from edgestill.distill.student.loop import Checkpoint, Loop, Mass, Progress, Training
from edgestill.distill.student.rounding import Gap, GridRow, Rounding, gap, with_answers
from edgestill.distill.student.train import weight_of_labels
from edgestill.distill.student_section import TrainSection
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime import manifest
from edgestill.runtime.device import peak_rss_bytes, usable_cores
from edgestill.runtime.manifest import LATER

FACTS_NAME, CHECKPOINT_NAME = "grid.json", "checkpoint.pt"
CALIBRATION_TOKENS = 8_192
SMALLEST_RMS = 1e-3
# One epoch of few rows in large steps: what there is to gain comes early, and the stage is to cost less than training.
MOST_ROWS, BATCH_ROWS, PASS_ROWS, LEARNING_RATE = 512, 32, 8, 2e-3


@dataclass(frozen=True)
class OnGrid:
    """What putting a student on the grid measured (grid.json); `inputs_sha256` names everything that it depended on.

    Gaps of three students: `nearest` rounds each weight on its own, `compensated` is GPTQ's, `trained` has learnt
    there. `shipped` names which of the last two is nearer on the development rows, and is saved.
    """

    inputs_sha256: str
    dev_rows: int
    nearest: Gap
    compensated: Gap
    trained: Gap
    calibration_tokens: int
    rounding_s: float
    rows: int
    epochs: float
    steps: int
    trained_parameters: int
    seconds: float
    peak_rss_bytes: int | None
    merge_max_logit_difference: float | None
    shipped: str = field(default="trained", metadata=LATER)
    schema: str = "edgestill-grid/1"


class GridLearner:
    """A student on the grid in training; see `loop.Learner`."""

    def __init__(self, student: GridStudent, parameters: Iterable[torch.nn.Parameter]) -> None:
        """`parameters` are trained: what is not rounded."""
        self.student = student
        self.parameters = list(parameters)
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    @property
    def rates(self) -> list[float]:
        """Learning rates relative to how large a tensor's values are (arXiv 1804.04235, section 8)."""
        return [max(SMALLEST_RMS, float(p.detach().square().mean().sqrt())) for p in self.parameters]

    def tokens(self, row: GridRow) -> int:
        """See `Learner`."""
        return self.student.tokens(row.row)

    def mass(self, rows: Sequence[GridRow]) -> Mass:
        """See `Learner`."""
        return self.student.mass([row.row for row in rows])

    def loss(self, rows: Sequence[GridRow], mass: Mass) -> tuple[Tensor, Tensor]:
        """Divergence from the float32 student."""
        return self.student.loss([row.row for row in rows], torch.cat([row.wanted for row in rows]), mass)


def put_on_grid(
    plan: StudentPlan,
    pairs: Sequence[tuple[Row, Annotation]],
    dev: Sequence[Row],
    weights: Path,
    folder: Path,
    inputs_sha256: str,
    progress: Progress = lambda done, total: None,
    checkpoint_s: float = 60.0,
) -> OnGrid:
    """Round a trained student, train it on the grid, save codes and scales in `folder`, `grid.json` last.

    Args:
        plan: of the student that was trained.
        pairs: training rows, of which up to 512 are drawn; their answers say where loss is, not what is right.
        dev: rows on which the gaps are measured, and by which it is chosen whether what was learnt is kept.
        weights: the trained student's folder.
        inputs_sha256: recorded, so that the caller can tell whether the grid is still the wanted one.
        progress: told (tokens so far, all) after each step of training.
        checkpoint_s: seconds between checkpoints of the training; rounding is done again after a stop.

    Raises:
        GateFailed: merging changed a decoder's answers.
        EdgestillError: the base changed since training.
    """
    start = time.perf_counter()
    student, drawn = _prepare(plan, pairs, weights)
    rows, held_out = _answered(student, drawn, dev)
    rounding = Rounding(student)
    rounded = _round(rounding, drawn, held_out)
    checkpoint = Checkpoint(folder / CHECKPOINT_NAME, inputs_sha256, checkpoint_s)
    loop, state, learnt = _learn(rounding, rows, held_out, rounded["compensated"], checkpoint, progress)
    facts = OnGrid(
        inputs_sha256,
        **rounded,
        **learnt,
        rows=len(rows),
        epochs=float(loop.train.epochs or 0),
        steps=len(state.losses),
        trained_parameters=sum(parameter.numel() for parameter in loop.parameters),
        seconds=time.perf_counter() - start,
        peak_rss_bytes=peak_rss_bytes(),
        merge_max_logit_difference=student.merge_difference,
    )
    if loop.processes.index == 0:
        _save(rounding.stored(), folder, facts)
    loop.processes.wait()
    return facts


def _prepare(
    plan: StudentPlan, pairs: Sequence[tuple[Row, Annotation]], weights: Path
) -> tuple[GridStudent, list[Any]]:
    """The trained student in float32, and the rows that are drawn for it, reasons and all."""
    recipe = plan.recipe.alone(plan.recipe.the_student)
    torch.manual_seed(recipe.train.seed)
    torch.set_num_threads(usable_cores())
    parts = (recipe, plan.base, plan.task, plan.tokenizer)
    student = GRID_STUDENTS[plan.kind](*parts, weights, [row.text for row, _ in pairs])
    weight_of = weight_of_labels(student, pairs)
    some = random.Random(recipe.train.seed).sample(pairs, min(len(pairs), MOST_ROWS))
    return student, [student.prepare(row.text, answer, weight_of[answer.label]) for row, answer in some]


def _answered(student: GridStudent, drawn: Sequence[Any], dev: Sequence[Row]) -> tuple[list[GridRow], list[GridRow]]:
    """Rows to learn from, without reasons, and development rows, each with what the student answers in float32."""
    rows = with_answers(student, [student.label_only(row) for row in drawn])
    return rows, with_answers(student, student.held_out([row.text for row in dev]))


def _round(rounding: Rounding, drawn: Sequence[Any], held_out: Sequence[GridRow]) -> dict[str, Any]:
    """Round the layers, in place; the facts about it."""
    nearest, start = rounding.nearest_gap(held_out), time.perf_counter()
    calibration = _calibration(rounding.student, drawn)
    rounding.compensate(calibration)
    return {
        "dev_rows": len(held_out),
        "nearest": nearest,
        "compensated": gap(rounding.student, held_out),
        "calibration_tokens": sum(map(rounding.student.tokens, calibration)),
        "rounding_s": time.perf_counter() - start,
    }


@torch.no_grad()
def keep_nearer(rounding: Rounding, before: Mapping[str, Tensor], compensated: Gap, trained: Gap) -> str:
    """Which of the two ships; the plain tensors are put back to `before` where learning did not help."""
    if trained.mean_kl_nats < compensated.mean_kl_nats:
        return "trained"
    for name, value in rounding.plain.items():
        value.copy_(before[name])
    return "compensated"


def _learn(
    rounding: Rounding,
    rows: Sequence[GridRow],
    held_out: Sequence[GridRow],
    compensated: Gap,
    checkpoint: Checkpoint,
    progress: Progress,
) -> tuple[Training[GridRow], Loop, dict[str, Any]]:
    """Train what is not rounded, in place, and keep the nearer of before and after; the facts about it."""
    before = {name: value.detach().clone() for name, value in rounding.plain.items()}
    learner = GridLearner(rounding.student, rounding.plain.values())
    loop = Training[GridRow](learner, rows, _settings(rounding.student.train), checkpoint)
    state = loop.run(progress)
    trained = gap(rounding.student, held_out)
    return loop, state, {"trained": trained, "shipped": keep_nearer(rounding, before, compensated, trained)}


def _calibration(student: GridStudent, drawn: Sequence[Any]) -> list[Any]:
    """The first of the drawn rows: as many as have `CALIBRATION_TOKENS`, at least one."""
    chosen: list[Any] = []
    tokens = 0
    for row in drawn:
        if chosen and tokens >= CALIBRATION_TOKENS:
            break
        chosen.append(row)
        tokens += student.tokens(row)
    return chosen


def _settings(train: TrainSection) -> TrainSection:
    return train.model_copy(
        update={"epochs": 1.0, "batch_rows": BATCH_ROWS, "pass_rows": PASS_ROWS, "learning_rate": LEARNING_RATE}
    )


def _save(tensors: dict[str, Tensor], folder: Path, facts: OnGrid) -> None:
    """grid.safetensors and, last, grid.json; the checkpoint goes."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        save_file(tensors, folder / GRID_NAME)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise manifest.disk_error(folder, error) from error
    manifest.save(folder / FACTS_NAME, facts)
