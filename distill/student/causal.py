"""A decoder as a student in training: LoRA on a causal base, label and rationale over one prompt. No loop.

The head is applied where there is loss only: over all tokens it would be a fifth of a small model's work.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgestill.distill.base import Base
from edgestill.distill.rationales import covered
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.attention import use_packed_attention
from edgestill.distill.student.fused import fuse
from edgestill.distill.student.loop import Mass
from edgestill.distill.student.objectives import label_rationale_loss, soft_target, token_losses
from edgestill.distill.student.packing import Branch, Example, Packed, pack, packed_tokens
from edgestill.distill.student.writing import write
from edgestill.distill.student_section import TrainSection
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime.device import describe_device
from edgestill.runtime.task import Task
from edgestill.runtime.written import read_answer

EVALUATION_ROWS = 16


class CausalRows:
    """A decoder and how rows go through it, packed; `causal` is a transformers causal language model."""

    def __init__(self, causal: Any, recipe: Recipe, task: Task, tokenizer: Any) -> None:
        """Rewires the model's attention for packed rows, in place."""
        use_packed_attention(causal)
        self.causal, self.train, self.task, self.tokenizer = causal, recipe.train, task, tokenizer

    def prepare(self, text: str, annotation: Annotation, weight: float) -> Example:
        """One row in token ids."""
        return make_example(self.task, self.tokenizer, text, covered(annotation, self.train), self.train, weight)

    def question(self, text: str) -> Example:
        """A row that nobody has answered: it ends where the label's first token would stand."""
        return Example(Branch(tuple(self.task.encode(self.tokenizer, text)), (self.task.eos_token_id,)), None)

    def tokens(self, row: Example) -> int:
        """The shared prompt once, then each branch."""
        return packed_tokens(row)

    def mass(self, rows: Sequence[Example]) -> Mass:
        """Weight of the label tokens, number of rationale tokens."""
        return sum(row.label_weight for row in rows), float(sum(row.reason_tokens for row in rows))

    def answers(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text, by one forward pass a batch; of a task that generates what it writes."""
        if self.task.is_written:
            return [read_answer(text, self.task) for text in self.written(texts)]
        return [self.task.labels[i].name for i in self.probabilities(texts).argmax(-1)]

    def written(self, texts: Sequence[str]) -> list[str]:
        """What the student writes after each text's prompt, greedily, without the end of sequence."""
        return [self.tokenizer.decode(row.label.completion).strip() for row in self.own_answers(texts)]

    def own_answers(self, texts: Sequence[str]) -> list[Example]:
        """Each text with what the student itself writes as the completion, greedily."""
        prompts = [tuple(self.task.encode(self.tokenizer, text)) for text in texts]
        said: list[tuple[int, ...]] = []
        for start in range(0, len(prompts), EVALUATION_ROWS):
            some = prompts[start : start + EVALUATION_ROWS]
            said += write(self.causal, some, self.task.eos_token_id, self.task.max_answer_tokens)
        return [Example(Branch(prompt, ids, even=True), None) for prompt, ids in zip(prompts, said, strict=True)]

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(R, L): what each text's labels get at the answer's position, by one forward pass a batch.

        As `decode.task_probabilities` has it: letters that a text has no choice for get 0.
        """
        head = self.head[[label.token_id for label in self.task.labels]]
        outputs = [(hidden @ head.t()).float() for hidden in self._of_questions(texts)]
        if not outputs:
            return np.zeros((0, len(head)))
        logits = torch.cat(outputs)
        for row, text in enumerate(texts if self.task.choices is not None else ()):
            logits[row, len(self.task.choices_in(text)) :] = -torch.inf
        found: NDArray[np.float64] = logits.softmax(-1).double().numpy()
        return found

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(R, H): the hidden state that each text's answer is read from."""
        found = [hidden.double() for hidden in self._of_questions(texts)]
        return torch.cat(found).numpy() if found else np.zeros((0, self.head.shape[1]))

    def _of_questions(self, texts: Sequence[str]) -> Iterator[torch.Tensor]:
        """(rows of the batch, H) of each batch, in order; the model is as it was before when they are exhausted."""
        was_training = self.causal.training
        self.causal.eval()
        with torch.no_grad():
            for start in range(0, len(texts), EVALUATION_ROWS):
                yield self.hidden(pack([self.question(text) for text in texts[start : start + EVALUATION_ROWS]]))
        self.causal.train(was_training)

    @property
    def head(self) -> torch.Tensor:
        """(V, H)."""
        weight: torch.Tensor = self.causal.lm_head.weight
        return weight

    def hidden(self, packed: Packed) -> torch.Tensor:
        """(N, H) where there is loss."""
        trunk = self.causal.model
        found = trunk(input_ids=packed.ids, position_ids=packed.positions, blocks=packed.blocks, use_cache=False)
        hidden: torch.Tensor = found.last_hidden_state[0, packed.sources]
        return hidden


class CausalLearner(CausalRows):
    """A base with a fresh adapter; see `loop.Learner`."""

    def __init__(self, recipe: Recipe, base: Base, task: Task, tokenizer: Any) -> None:
        """Loads the base in the recipe's precision; the adapter is made from torch's generator."""
        self.dtype = compute_dtype(recipe.train.precision)
        causal = load_causal(base, self.dtype)
        self.model = _with_lora(causal, recipe)
        super().__init__(causal, recipe, task, tokenizer)
        self.trained = fuse(self.model, self.dtype)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapter's."""
        return self.trained

    @property
    def rates(self) -> list[float]:
        """All alike."""
        return [1.0] * len(self.parameters)

    def loss(self, rows: Sequence[Example], mass: Mass) -> tuple[torch.Tensor, torch.Tensor]:
        """See `objectives.label_rationale_loss`."""
        packed = pack(rows)
        losses = token_losses(self.hidden(packed), self.head, packed)
        loss, parts = label_rationale_loss(losses, packed, self.train.rationale_weight, mass)
        return loss, parts.nan_to_num()

    def save(self, folder: Path) -> None:
        """The adapter in peft's format."""
        self.model.save_pretrained(str(folder))


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
    if task.chain:
        return Example(_chain(task, tokenizer, text, annotation), None, None, weight)
    encode, label = tokenizer.encode, next((one for one in task.labels if one.name == annotation.label), None)
    completion = " " + annotation.label if label is None else label.completion

    def branch(suffix: str, answer: str) -> Branch:
        ids = (*encode(answer, add_special_tokens=False).ids, task.eos_token_id)
        even = task.is_written and suffix == task.answer_suffix
        return Branch(tuple(task.encode(tokenizer, text, suffix)), ids, even=even)

    reason = None
    if task.rationale_suffix is not None and annotation.rationale is not None:  # an empty one is learnt as a blank
        reason = branch(task.rationale_suffix, " " + annotation.rationale)
    odds = annotation.probabilities if train.soft_labels else None
    soft = soft_target(annotation.label, odds, task.label_names, train.label_temperature, train.label_smoothing)
    tokens = {label.name: label.token_id for label in task.labels}
    shares = None if soft is None else tuple((tokens[name], share) for name, share in soft.items())
    return Example(branch(task.answer_suffix, completion), reason, shares, weight)


def _chain(task: Task, tokenizer: Any, text: str, annotation: Annotation) -> Branch:
    """Reason and answer as one completion; the words between them count as the reason's, since they never differ.

    A row without a reason teaches to go on to the answer at once.
    """
    reason = f" {annotation.rationale or ''}{task.answer_suffix}"
    whole = tokenizer.encode(f"{reason} {annotation.label}", add_special_tokens=False)
    before = sum(start < len(reason) for start, _ in whole.offsets)
    return Branch(tuple(task.encode(tokenizer, text)), (*whole.ids, task.eos_token_id), reason=before, even=True)


@functools.cache
def compute_dtype(precision: str = "auto") -> torch.dtype:
    """What the recipe's `train.precision` means on this machine: auto is bfloat16 where the processor multiplies it."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    native = {"avx512_bf16", "amx_int8", "bf16"} & set(describe_device().isa)
    return torch.bfloat16 if native else torch.float32


def load_causal(base: Base, dtype: torch.dtype) -> Any:
    """The base as a transformers causal language model."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype, attn_implementation="sdpa")


def _with_lora(causal: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = recipe.the_student.lora
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(causal, config, autocast_adapter_dtype=True)
