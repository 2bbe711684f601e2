"""An encoder as a student in training: rows packed into one sequence, all weights or LoRA on the trunk. No loop.

All weights are all but the word vectors: half of a small encoder, and most of what a step would have to write.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgestill.distill.base import Base
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.causal import compute_dtype
from edgestill.distill.student.encoder import Encoder, new_encoder, save_encoder
from edgestill.distill.student.loop import Mass
from edgestill.distill.student.objectives import set_losses, set_target, soft_target
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime import label_sets
from edgestill.runtime.decode import task_probabilities
from edgestill.runtime.task import Task

EVALUATION_ROWS = 64
# The fresh layer has everything to learn, the trunk little (discriminative rates: arXiv 1801.06146, section 3.2).
HEAD_RATE = 10.0


@dataclass(frozen=True)
class TextRow:
    """One training row: token ids with the special ones, the wanted shares of the L labels, the class weight.

    The shares sum to 1 over the labels; of a set of labels each is between 0 and 1 on its own.
    """

    ids: tuple[int, ...]
    shares: tuple[float, ...]
    weight: float = 1.0


class EncoderRows:
    """An encoder and how rows go through it, packed."""

    def __init__(self, model: Encoder, recipe: Recipe, task: Task, tokenizer: Any) -> None:
        """Products are in the recipe's precision, weights in float32."""
        self.model, self.train, self.task, self.tokenizer = model, recipe.train, task, tokenizer
        self.dtype = compute_dtype(recipe.train.precision)

    def prepare(self, text: str, annotation: Annotation, weight: float) -> TextRow:
        """One row in token ids."""
        names, train, ids = self.task.label_names, self.train, tuple(self.task.encode(self.tokenizer, text))
        if self.task.is_multilabel:
            return TextRow(ids, set_target(label_sets.split(annotation.label), names, train.label_smoothing), weight)
        odds = annotation.probabilities if train.soft_labels else None
        soft = soft_target(annotation.label, odds, names, train.label_temperature, train.label_smoothing)
        wanted = soft or {annotation.label: 1.0}
        return TextRow(ids, tuple(wanted.get(name, 0.0) for name in names), weight)

    def question(self, text: str) -> TextRow:
        """A row that nobody has answered."""
        return TextRow(tuple(self.task.encode(self.tokenizer, text)), ())

    def tokens(self, row: TextRow) -> int:
        """Its own; there is no padding."""
        return len(row.ids)

    def mass(self, rows: Sequence[TextRow]) -> Mass:
        """Weight of the rows; an encoder learns no rationales."""
        return sum(row.weight for row in rows), 0.0

    def logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """(R, L) for R rows of token ids in one pass; no row sees another."""
        with self._products():
            logits: torch.Tensor = self.model(rows)
        return logits

    def pooled(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """(R, H) for R rows of token ids in one pass."""
        with self._products():
            return self.model.pooled(rows).float()

    def _products(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)

    def answers(self, texts: Sequence[str]) -> list[str]:
        """The answer to each text as `Task.written` has it, by one forward pass a batch."""
        return [self.task.written(self.task.chosen(one)) for one in self.probabilities(texts).tolist()]

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(R, L): what each text's labels get, shares of 1 or of a set each its own, by one forward pass a batch."""
        outputs = zip(self._in_batches(texts, self.logits), texts, strict=True)
        chances = [task_probabilities(row.numpy(), self.task, text) for row, text in outputs]
        return np.array(chances).reshape(len(texts), len(self.task.labels))

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(R, H): the pooled hidden states."""
        pooled = self._in_batches(texts, self.pooled)
        return torch.stack(pooled).double().numpy() if pooled else np.zeros((0, self.model.trunk.config.hidden_size))

    def _in_batches(
        self, texts: Sequence[str], run: Callable[[Sequence[Sequence[int]]], torch.Tensor]
    ) -> list[torch.Tensor]:
        """A row of what `run` gives for each text, without gradients; the model is left as it was."""
        was_training, found = self.model.training, list[torch.Tensor]()
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(texts), EVALUATION_ROWS):
                batch = [self.task.encode(self.tokenizer, text) for text in texts[start : start + EVALUATION_ROWS]]
                found += list(run(batch))
        self.model.train(was_training)
        return found


class EncoderLearner(EncoderRows):
    """A trunk with a fresh head; see `loop.Learner`."""

    def __init__(self, recipe: Recipe, base: Base, task: Task, tokenizer: Any) -> None:
        """Loads the trunk in float32; the head, and LoRA if the recipe wants it, come from torch's generator."""
        super().__init__(new_encoder(Path(base.folder), len(task.labels)), recipe, task, tokenizer)
        if recipe.the_student.full_tuning:
            self.model.trunk.get_input_embeddings().requires_grad_(False)
        else:
            self.model.trunk = _with_lora(self.model.trunk, recipe)
        self.model.train()

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All weights but the word vectors, or those of LoRA and the head."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def rates(self) -> list[float]:
        """`HEAD_RATE` for the layer that gives the labels, 1 for the trunk and the dense layer of `cls`."""
        fresh = {id(parameter) for parameter in self.model.head["out"].parameters()}
        return [HEAD_RATE if id(parameter) in fresh else 1.0 for parameter in self.parameters]

    def loss(self, rows: Sequence[TextRow], mass: Mass) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted cross-entropy with the wanted shares, in nats; of a set of labels that of each, see `set_losses`."""
        logits = self.logits([row.ids for row in rows])
        wanted, weights = torch.tensor([row.shares for row in rows]), torch.tensor([row.weight for row in rows])
        losses = set_losses(logits, wanted) if self.task.is_multilabel else -(wanted * logits.log_softmax(-1)).sum(-1)
        loss = (weights * losses).sum() / mass[0]
        return loss, torch.stack([loss.detach(), torch.tensor(0.0)])

    def save(self, folder: Path) -> None:
        """The whole model, LoRA folded in: see `encoder.save_encoder`."""
        if hasattr(self.model.trunk, "merge_and_unload"):
            self.model.trunk = self.model.trunk.merge_and_unload()
        save_encoder(self.model, folder)


def _with_lora(trunk: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = recipe.the_student.lora
    return get_peft_model(trunk, LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules="all-linear"))
