"""Train a student on the teacher's answers: prepare rows, run the loop, save weights and, last, what was measured.

Does not evaluate on test rows and does not merge.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from edgestill.distill.base import Base
from edgestill.distill.dataset import Row
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.bidirectional import EncoderLearner
from edgestill.distill.student.causal import CausalLearner
from edgestill.distill.student.gate import GatedRows
from edgestill.distill.student.loop import Checkpoint, Loop, Progress
from edgestill.distill.student.loop import Training as TrainingLoop
from edgestill.distill.student.objectives import class_weights
from edgestill.distill.teacher.protocol import Annotation
from edgestill.distill.white_box.learner import WhiteBoxLearner
from edgestill.distill.white_box.teacher_logits import FOLDER_NAME as LOGITS_FOLDER
from edgestill.runtime import manifest
from edgestill.runtime.device import peak_rss_bytes, usable_cores
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import LATER
from edgestill.runtime.task import Task

FACTS_NAME = "training.json"
CHECKPOINT_NAME = "checkpoint.pt"
LOSSES_NAME = "losses.jsonl"
USED_ROWS_NAME = "used_rows.jsonl"
AnyLearner = CausalLearner | EncoderLearner
LEARNERS: dict[str, type[AnyLearner]] = {"causal": CausalLearner, "encoder": EncoderLearner}

Pair = tuple[Row, Annotation]


@dataclass(frozen=True)
class Training:
    """What a training run measured; `inputs_sha256` names everything that it depended on.

    `computed_tokens` counts token positions that went through the model with gradients, `label_loss_nats` and
    `rationale_loss_nats` are means over the last tenth of the steps, None where that held none; `dev_agreement` is with
    the teacher's labels. `gate` is what a gate let through and where it stood at the end, see `GatedRows.facts`; None
    without one.
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
    label_loss_nats: float | None
    rationale_loss_nats: float | None
    dev_rows: int
    dev_agreement: float
    epochs: float = field(default=0.0, metadata=LATER)
    trained_parameters: int = field(default=0, metadata=LATER)
    processes: int = field(default=1, metadata=LATER)
    resumed_at_step: int | None = field(default=None, metadata=LATER)
    gate: dict[str, Any] | None = field(default=None, metadata=LATER)
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
        _save(learner, folder, facts, loop, state)
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
    """`train_student` without a folder: the trained student in memory, its loop, and how that went.

    Without any pairs the student is as it starts out. Where the recipe's strategy has a gate, it decides at every step.

    Raises:
        EdgestillError: the gate cannot decide by these answers, or none has the probabilities that are to be learnt;
            told before anything is loaded.
    """
    recipe = recipe.alone(recipe.the_student)
    epochs = recipe.train.epochs or recipe.the_student.epochs(max(1, len(pairs)))
    train = recipe.train.model_copy(update={"epochs": epochs})
    gate = recipe.select.gate(task.label_names)
    if gate is not None:
        gate.check([answer for _, answer in pairs])
    _check_soft(recipe, pairs)
    torch.manual_seed(recipe.train.seed)
    torch.set_num_threads(usable_cores())
    learner_type = WhiteBoxLearner if recipe.train.white_box else LEARNERS[recipe.the_student.kind]
    learner = learner_type(recipe, base, task, tokenizer)
    weights = weight_of_labels(learner, pairs)
    rows: list[Any] = [learner.prepare(row.text, a, weights[a.label]) for row, a in pairs]
    if isinstance(learner, WhiteBoxLearner) and checkpoint is not None:
        rows = learner.ask_teacher(rows, checkpoint.path.parents[1] / LOGITS_FOLDER)
    sieve = None if gate is None else GatedRows(gate, learner, rows, pairs)
    drawn = rows if sieve is None else range(len(rows))
    loop = TrainingLoop[Any](learner, drawn, train, checkpoint, sieve=sieve)
    return learner, loop, loop.run(progress)


def _check_soft(recipe: Recipe, pairs: Sequence[Pair]) -> None:
    if recipe.train.soft_labels and pairs and all(answer.probabilities is None for _, answer in pairs):
        raise EdgestillError(
            f"train.soft_labels wants the teacher's probabilities, and none of {len(pairs)} answers has any",
            "set teacher.logprobs or teacher.votes, record answers with probabilities, or write soft_labels: false",
        )


def weight_of_labels(learner: Any, pairs: Sequence[Pair]) -> dict[str, float]:
    """What each label's rows count by `train.class_weights`; see `objectives.class_weights`.

    `learner` prepares the rows: of a decoder a label of many tokens weighs more by itself, and less by its class.
    """
    labels, how = [answer.label for _, answer in pairs], learner.train.class_weights
    if how == "equal":
        return dict.fromkeys(labels, 1.0)
    masses = [learner.mass([learner.prepare(row.text, answer, 1.0)])[0] for row, answer in pairs]
    return class_weights(labels, how, masses) if pairs else {}


def _save(learner: AnyLearner, folder: Path, facts: Training, loop: TrainingLoop[Any], state: Loop) -> None:
    """The weights, losses.jsonl (a line a step), used_rows.jsonl of a gate and, last, training.json.

    The checkpoint goes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        learner.save(folder)
        manifest.write_jsonl(folder / LOSSES_NAME, _loss_lines(loop, state))
        if isinstance(loop.sieve, GatedRows):
            manifest.write_jsonl(folder / USED_ROWS_NAME, loop.sieve.used_rows())
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise manifest.disk_error(folder, error) from error
    manifest.save(folder / FACTS_NAME, facts)


def _loss_lines(loop: TrainingLoop[Any], state: Loop) -> Iterator[dict[str, Any]]:
    gated = loop.sieve if isinstance(loop.sieve, GatedRows) else None
    for step, parts in enumerate(state.losses):
        label, rationale = map(_known, parts.tolist())
        selected = {} if gated is None else {"rows": gated.account.selected[step]}
        yield {"step": step, "label_nats": label, "rationale_nats": rationale, **selected}


def _known(value: float) -> float | None:
    """A number as a file holds it: null where there is none."""
    return None if math.isnan(value) else value


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
        label_loss_nats=_known(float(tail[0])),
        rationale_loss_nats=_known(float(tail[1])),
        dev_rows=len(dev),
        dev_agreement=agreed / len(dev),
        epochs=float(loop.train.epochs or 0),
        trained_parameters=sum(parameter.numel() for parameter in loop.parameters),
        processes=loop.processes.count,
        resumed_at_step=state.resumed_at_step,
        gate=loop.sieve.facts() if isinstance(loop.sieve, GatedRows) else None,
    )
