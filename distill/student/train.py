"""Train a student on the teacher's answers: prepare rows, run the loop, save weights and, last, what was measured.

Does not evaluate on test rows and does not merge.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from edgestill.distill.base import Base
from edgestill.distill.dataset import Row
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.bidirectional import EncoderLearner
from edgestill.distill.student.causal import CausalLearner
from edgestill.distill.student.loop import Checkpoint, Loop, Progress
from edgestill.distill.student.loop import Training as TrainingLoop
from edgestill.distill.student.objectives import class_weights
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime import manifest
from edgestill.runtime.device import peak_rss_bytes, usable_cores
from edgestill.runtime.task import Task

FACTS_NAME = "training.json"
CHECKPOINT_NAME = "checkpoint.pt"
LOSSES_NAME = "losses.jsonl"
AnyLearner = CausalLearner | EncoderLearner
LEARNERS: dict[str, type[AnyLearner]] = {"causal": CausalLearner, "encoder": EncoderLearner}

Pair = tuple[Row, Annotation]


@dataclass(frozen=True)
class Training:
    """What a training run measured; `inputs_sha256` names everything that it depended on.

    `computed_tokens` counts token positions that went through the model with gradients, `label_loss_nats` and
    `rationale_loss_nats` are means over the last tenth of the steps, `dev_agreement` is with the teacher's labels.
    `epochs` are those that the recipe or, without them, the student's kind and the number of rows wanted.
    `resumed_at_step` says where a stopped training went on, None when it was not stopped.
    """

    inputs_sha256: str
    rows: int
    steps: int
    computed_tokens: int
    seconds: float
    tokens_per_s: float
    peak_rss_bytes: int | None
    precision: str
    label_loss_nats: float
    rationale_loss_nats: float | None
    dev_rows: int
    dev_agreement: float
    epochs: float = 0.0
    trained_parameters: int = 0
    processes: int = 1
    resumed_at_step: int | None = None
    schema: str = "edgestill-training/1"


def train_student(
    recipe: Recipe,
    base: Base,
    task: Task,
    tokenizer: Any,
    pairs: Sequence[Pair],
    dev: Sequence[Pair],
    folder: Path,
    inputs_sha256: str,
    progress: Progress = lambda done, total: None,
    checkpoint_s: float = 60.0,
) -> Training:
    """Train on `pairs` and save the weights in `folder`, `training.json` last.

    A training that was stopped goes on from its last checkpoint in `folder` and ends with the same weights.

    Args:
        recipe: with one student.
        pairs: training rows with the teacher's answers; test rows have no business here.
        dev: rows for one agreement figure at the end; nothing is chosen by it.
        inputs_sha256: recorded, so that the caller can tell whether the weights are still the wanted ones.
        progress: told (computed tokens so far, all) after each step.
        checkpoint_s: seconds between checkpoints.

    Raises:
        EdgestillError: the weights cannot be written.
    """
    checkpoint = Checkpoint(folder / CHECKPOINT_NAME, inputs_sha256, checkpoint_s)
    learner, loop, state = train_learner(recipe, base, task, tokenizer, pairs, checkpoint, progress)
    facts = _facts(inputs_sha256, len(pairs), loop, state, learner, dev)
    if loop.processes.index == 0:
        _save(learner, folder, facts, state)
    loop.processes.wait()
    return facts


def train_learner(
    recipe: Recipe,
    base: Base,
    task: Task,
    tokenizer: Any,
    pairs: Sequence[Pair],
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[AnyLearner, TrainingLoop[Any], Loop]:
    """`train_student` without a folder: the trained student in memory, its loop, and how that went."""
    recipe = recipe.alone(recipe.the_student)
    train = recipe.train.model_copy(update={"epochs": recipe.train.epochs or recipe.the_student.epochs(len(pairs))})
    torch.manual_seed(recipe.train.seed)
    torch.set_num_threads(usable_cores())
    learner = LEARNERS[recipe.the_student.kind](recipe, base, task, tokenizer)
    weights = class_weights([annotation.label for _, annotation in pairs], recipe.train.class_weights)
    rows: list[Any] = [learner.prepare(row.text, a, weights[a.label]) for row, a in pairs]
    loop = TrainingLoop[Any](learner, rows, train, checkpoint)
    return learner, loop, loop.run(progress)


def _save(learner: AnyLearner, folder: Path, facts: Training, state: Loop) -> None:
    """The weights, losses.jsonl (a line a step) and, last, training.json; the checkpoint goes."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        learner.save(folder)
        manifest.write_jsonl(folder / LOSSES_NAME, _loss_lines(state))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise manifest.disk_error(folder, error) from error
    manifest.save(folder / FACTS_NAME, facts)


def _loss_lines(state: Loop) -> Iterator[dict[str, Any]]:
    for step, parts in enumerate(state.losses):
        label, rationale = parts.tolist()
        yield {"step": step, "label_nats": label, "rationale_nats": None if math.isnan(rationale) else rationale}


def _facts(inputs: str, rows: int, loop: TrainingLoop[Any], state: Loop, learner: Any, dev: Sequence[Pair]) -> Training:
    said = learner.answers([row.text for row, _ in dev])
    agreed = sum(label == answer.label for label, (_, answer) in zip(said, dev, strict=True))
    tail = torch.stack(state.losses[-max(1, len(state.losses) // 10) :]).nanmean(0)
    return Training(
        inputs_sha256=inputs,
        rows=rows,
        steps=len(state.losses),
        computed_tokens=state.tokens,
        seconds=state.seconds,
        tokens_per_s=state.tokens / state.seconds,
        peak_rss_bytes=peak_rss_bytes(),
        precision=str(learner.dtype).removeprefix("torch."),
        label_loss_nats=float(tail[0]),
        rationale_loss_nats=None if math.isnan(tail[1]) else float(tail[1]),
        dev_rows=len(dev),
        dev_agreement=agreed / len(dev),
        epochs=float(loop.train.epochs or 0),
        trained_parameters=sum(parameter.numel() for parameter in loop.parameters),
        processes=loop.processes.count,
        resumed_at_step=state.resumed_at_step,
    )
