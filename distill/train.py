"""The loop: LoRA on a causal base, label and rationale in one packed forward pass; saves the adapter and its facts.

Does not evaluate on test rows and does not merge.
"""

import functools
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from edgestill.distill.base import Base
from edgestill.distill.dataset import Row
from edgestill.distill.objectives import class_weights, label_rationale_loss, soft_target
from edgestill.distill.packing import Branch, Example, Packed, pack, packed_tokens
from edgestill.distill.recipe import Recipe, TrainSection
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime import manifest
from edgestill.runtime.device import describe_device, peak_rss_bytes, usable_cores
from edgestill.runtime.task import Task

FACTS_NAME = "training.json"
WARMUP_SHARE = 0.06
FINAL_RATE_SHARE = 0.02
MAX_GRADIENT_NORM = 1.0
EVALUATION_ROWS = 16

Pair = tuple[Row, Annotation]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Training:
    """What a training run measured; `inputs_sha256` names everything that it depended on.

    `computed_tokens` counts token positions that went through the model with gradients, `label_loss_nats` and
    `rationale_loss_nats` are means over the last tenth of the steps, `dev_agreement` is with the teacher's labels.
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
    schema: str = "edgestill-training/1"


def make_example(
    task: Task,
    tokenizer: Any,
    text: str,
    annotation: Annotation,
    train: TrainSection = TrainSection(),  # noqa: B008 - frozen
    weight: float = 1.0,
) -> Example:
    """One training row in token ids: the device's own prompt, then the completion and the end-of-sequence id.

    `train` says whether the label is learnt as the teacher's distribution; `weight` is the label's class weight.
    """
    encode = tokenizer.encode
    completion = next(label.completion for label in task.labels if label.name == annotation.label)

    def branch(suffix: str, answer: str) -> Branch:
        ids = (*encode(answer, add_special_tokens=False).ids, task.eos_token_id)
        return Branch(tuple(task.encode(tokenizer, text, suffix)), ids)

    reason = None
    if task.rationale_suffix is not None and annotation.rationale:
        reason = branch(task.rationale_suffix, " " + annotation.rationale)
    odds = annotation.probabilities if train.soft_labels else None
    soft = soft_target(annotation.label, odds, task.label_names, train.label_temperature, train.label_smoothing)
    tokens = {label.name: label.token_id for label in task.labels}
    shares = None if soft is None else tuple((tokens[name], share) for name, share in soft.items())
    return Example(branch(task.answer_suffix, completion), reason, shares, weight)


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
) -> Training:
    """Train an adapter on `pairs` and save it in `folder`, `training.json` last.

    Args:
        pairs: training rows with the teacher's answers; test rows have no business here.
        dev: rows for one agreement figure at the end; nothing is chosen by it.
        inputs_sha256: recorded, so that the caller can tell whether the adapter is still the wanted one.
        progress: told (computed tokens so far, all) after each step.
    """
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(recipe.train.seed)
    torch.set_num_threads(usable_cores())
    model = _with_lora(load_causal(base, compute_dtype()), recipe)
    weights = class_weights([annotation.label for _, annotation in pairs], recipe.train.class_weights)
    examples = [make_example(task, tokenizer, row.text, a, recipe.train, weights[a.label]) for row, a in pairs]
    start = time.perf_counter()
    losses, tokens = _loop(model, examples, recipe.train, progress)
    seconds = time.perf_counter() - start
    tail = torch.stack(losses[-max(1, len(losses) // 10) :]).nanmean(0)
    facts = Training(
        inputs_sha256=inputs_sha256,
        rows=len(examples),
        steps=len(losses),
        computed_tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        peak_rss_bytes=peak_rss_bytes(),
        precision=str(compute_dtype()).removeprefix("torch."),
        label_loss_nats=float(tail[0]),
        rationale_loss_nats=None if math.isnan(tail[1]) else float(tail[1]),
        dev_rows=len(dev),
        dev_agreement=agreement(model, task, tokenizer, dev),
    )
    try:
        model.save_pretrained(str(folder))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise manifest.disk_error(folder, error) from error
    manifest.save(folder / FACTS_NAME, facts)
    return facts


@functools.cache
def compute_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32; adapter weights are float32 either way."""
    native = {"avx512_bf16", "amx_int8", "bf16"} & set(describe_device().isa)
    return torch.bfloat16 if native else torch.float32


def load_causal(base: Base, dtype: torch.dtype) -> Any:
    """The base as a transformers causal language model on the CPU."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype, attn_implementation="sdpa")


def answer_logits(model: Any, packed: Packed) -> torch.Tensor:
    """Logits at the positions that carry loss only, (N, V): the head is a fifth of a small model's work."""
    causal = model.base_model.model
    dtype = compute_dtype()
    mask = torch.zeros(packed.visible.shape, dtype=dtype).masked_fill(~packed.visible, torch.finfo(dtype).min)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        hidden = causal.model(
            input_ids=packed.ids, position_ids=packed.positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        logits: torch.Tensor = causal.lm_head(hidden[0, packed.sources])
    return logits


def agreement(model: Any, task: Task, tokenizer: Any, pairs: Sequence[Pair]) -> float:
    """Share of rows where the student's likeliest label is the teacher's, by one forward pass a batch."""
    token_ids = torch.tensor([label.token_id for label in task.labels])
    hits = 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(pairs), EVALUATION_ROWS):
            batch = pairs[start : start + EVALUATION_ROWS]
            prompts = [tuple(task.encode(tokenizer, row.text)) for row, _ in batch]
            packed = pack([Example(Branch(prompt, (task.eos_token_id,)), None) for prompt in prompts])
            best = answer_logits(model, packed)[:, token_ids].argmax(-1).tolist()
            hits += sum(task.labels[i].name == a.label for i, (_, a) in zip(best, batch, strict=True))
    return hits / len(pairs)


def _with_lora(causal: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = recipe.student.lora
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(causal, config, autocast_adapter_dtype=True)


def _loop(
    model: Any, examples: list[Example], train: TrainSection, progress: Progress
) -> tuple[list[torch.Tensor], int]:
    """AdamW over seeded batches, warm-up then linear decay; per step (2,) losses, and the tokens computed."""
    batches = _batches(examples, train)
    total_tokens = sum(packed_tokens(example) for batch in batches for example in batch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_share(step, len(batches)))
    losses: list[torch.Tensor] = []
    tokens = 0
    model.train()
    for batch in batches:
        packed = pack(batch)
        loss, parts = label_rationale_loss(answer_logits(model, packed), packed, train.rationale_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(parts)
        tokens += packed.ids.shape[1]
        progress(tokens, total_tokens)
    return losses, tokens


def _batches(examples: list[Example], train: TrainSection) -> list[list[Example]]:
    """Every epoch a fresh seeded order; a fraction of an epoch takes that share of its batches."""
    rng = random.Random(train.seed)
    batches: list[list[Example]] = []
    for _ in range(math.ceil(train.epochs)):
        order = rng.sample(range(len(examples)), len(examples))
        chosen = [examples[i] for i in order]
        batches += [chosen[i : i + train.batch_rows] for i in range(0, len(chosen), train.batch_rows)]
    per_epoch = math.ceil(len(examples) / train.batch_rows)
    return batches[: max(1, round(train.epochs * per_epoch))]


def _rate_share(step: int, steps: int) -> float:
    warmup = min(1.0, (step + 1) / max(1.0, WARMUP_SHARE * steps))
    return warmup * max(FINAL_RATE_SHARE, 1 - step / steps)
