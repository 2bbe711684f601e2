"""Trained students on their way to the grid, a decoder and an encoder: what is rounded, and how they answer rows.

Each starts as it was trained, in float32, and is changed in place by `onto_grid`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from edgestill.distill.base import Base
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.bidirectional import EncoderRows, TextRow
from edgestill.distill.student.causal import CausalRows, compute_dtype
from edgestill.distill.student.encoder import load_encoder
from edgestill.distill.student.loop import Mass
from edgestill.distill.student.merge import merge
from edgestill.distill.student.objectives import divergences, label_rationale_loss
from edgestill.distill.student.packing import Example, Packed, pack
from edgestill.distill.white_box.divergences import HEAD_ROWS
from edgestill.runtime.task import Task

PROBE_ROWS = 4
# A trained student is so sure of its training rows that their divergence says little about how it weighs labels.
TEMPERATURE = 4.0


class CausalOnGrid(CausalRows):
    """A decoder with its adapter folded in."""

    def __init__(
        self, recipe: Recipe, base: Base, task: Task, tokenizer: Any, weights: Path, texts: Sequence[str]
    ) -> None:
        """`weights` is the adapter's folder; merging is checked on a few of the `texts`."""
        probes = [task.encode(tokenizer, text) for text in texts[:PROBE_ROWS]]
        causal, self.merge_difference = merge(Path(base.folder), base.weights_sha256, weights, probes)
        super().__init__(causal.requires_grad_(False), recipe, task, tokenizer)
        self.dtype = compute_dtype(recipe.train.precision)
        self.wanted_head = self.head.detach().to(self.dtype, copy=True)  # the head itself will be rounded

    @property
    def trunk(self) -> torch.nn.Module:
        """What holds the linear layers that are rounded to 4 bits."""
        trunk: torch.nn.Module = self.causal.model
        return trunk

    @property
    def tables(self) -> list[torch.nn.Module]:
        """What is rounded to 8 bits: the embedding, and the head where it is not the same."""
        table, head = self.causal.get_input_embeddings(), self.causal.lm_head
        return [table] if head.weight is table.weight else [table, head]

    def tensors(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(name in files, value) of all parameters; a tied head has none of its own."""
        yield from self.causal.named_parameters()

    def label_only(self, row: Example) -> Example:
        """The row without its reason, which costs most of the tokens and says nothing about the label."""
        return dataclasses.replace(row, rationale=None)

    def held_out(self, texts: Sequence[str]) -> list[Example]:
        """Rows on which the gap is measured: where the label stands, or over what the student now writes itself."""
        return self.own_answers(texts) if self.task.is_written else [self.question(text) for text in texts]

    def positions(self, row: Example) -> int:
        """At how many places of `outputs` a row answers."""
        return sum(len(branch.completion) for branch in row.branches)

    def outputs(self, rows: Sequence[Example]) -> Tensor:
        """(N, H) hidden states that predict, of all rows."""
        return self._outputs(pack(rows))

    def _outputs(self, packed: Packed) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            return self.hidden(packed).to(self.dtype)

    def loss(self, rows: Sequence[Example], wanted: Tensor, mass: Mass) -> tuple[Tensor, Tensor]:
        """Divergence from the float32 self, rows weighed as in training."""
        packed = pack(rows)
        found = divergences(self._outputs(packed), self.head.to(self.dtype), wanted, self.wanted_head, TEMPERATURE)
        loss, parts = label_rationale_loss(found, packed, self.train.rationale_weight, mass)
        return loss, parts.nan_to_num()

    def gaps(self, outputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(divergences in nats over the vocabulary (N,), whether the likeliest label stays (N,)).

        Of a task that generates, whether the likeliest token stays.
        """
        head, ids = self.head.to(self.dtype), [label.token_id for label in self.task.labels]
        asked = slice(None) if self.task.is_written else ids
        pairs = zip(outputs.split(HEAD_ROWS), wanted.split(HEAD_ROWS), strict=True)
        kept = torch.cat(
            [(a @ head[asked].t()).argmax(-1) == (b @ self.wanted_head[asked].t()).argmax(-1) for a, b in pairs]
        )
        return divergences(outputs, head, wanted, self.wanted_head), kept


class EncoderOnGrid(EncoderRows):
    """An encoder with its classification head, which stays in float32."""

    merge_difference = None

    def __init__(
        self, recipe: Recipe, base: Base, task: Task, tokenizer: Any, weights: Path, texts: Sequence[str]
    ) -> None:
        """`weights` is the folder of the trained model."""
        del base, texts
        super().__init__(load_encoder(weights).requires_grad_(False), recipe, task, tokenizer)

    @property
    def trunk(self) -> torch.nn.Module:
        """What holds the linear layers that are rounded to 4 bits."""
        trunk: torch.nn.Module = self.model.trunk
        return trunk

    @property
    def tables(self) -> list[torch.nn.Module]:
        """What is rounded to 8 bits: the word vectors."""
        return [self.model.trunk.get_input_embeddings()]

    def tensors(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(name in files, value) of all parameters."""
        yield from ((name.removeprefix("trunk."), value) for name, value in self.model.named_parameters())

    def label_only(self, row: TextRow) -> TextRow:
        """The row."""
        return row

    def held_out(self, texts: Sequence[str]) -> list[TextRow]:
        """Rows on which the gap is measured."""
        return [self.question(text) for text in texts]

    def positions(self, row: TextRow) -> int:  # noqa: ARG002 - a row has one answer
        """One."""
        return 1

    def outputs(self, rows: Sequence[TextRow]) -> Tensor:
        """(R, L) logits."""
        return self.logits([row.ids for row in rows])

    def loss(self, rows: Sequence[TextRow], wanted: Tensor, mass: Mass) -> tuple[Tensor, Tensor]:
        """Divergence from the float32 self, rows weighed as in training."""
        found, _ = self.gaps(self.outputs(rows) / TEMPERATURE, wanted / TEMPERATURE)
        loss = (found * torch.tensor([row.weight for row in rows])).sum() * TEMPERATURE**2 / mass[0]
        return loss, torch.stack([loss.detach(), torch.tensor(0.0)])

    def gaps(self, outputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(divergences in nats over the labels (R,), whether the answer stays (R,)); of a set the labels' mean."""
        if self.task.is_multilabel:
            shares = wanted.sigmoid()
            own = binary_cross_entropy_with_logits(wanted, shares, reduction="none")
            found = binary_cross_entropy_with_logits(outputs, shares, reduction="none") - own
            kept = ((outputs.sigmoid() >= self.task.threshold) == (shares >= self.task.threshold)).all(-1)
            return found.mean(-1), kept
        log_p = wanted.log_softmax(-1)
        found = (log_p.exp() * (log_p - outputs.log_softmax(-1))).sum(-1)
        return found, outputs.argmax(-1) == wanted.argmax(-1)


GridStudent = CausalOnGrid | EncoderOnGrid
GRID_STUDENTS: dict[str, type[GridStudent]] = {"causal": CausalOnGrid, "encoder": EncoderOnGrid}
