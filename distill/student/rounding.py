"""A student's tensors on the grid: which are rounded how, and how far the answers move. No training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgestill.distill.student.gptq import Codes, round_layers
from edgestill.distill.student.grid_rule import dequantize, q4_0, q8_0
from edgestill.distill.student.grid_students import GridStudent

PASS_ROWS = 64


@dataclass(frozen=True)
class Gap:
    """How far a rounded student answers from its float32 self, in torch.

    Divergence at the answer position, in nats: over the vocabulary of a decoder, over the labels of an encoder.
    """

    mean_kl_nats: float
    labels_kept: float


@dataclass(frozen=True)
class GridRow:
    """A prepared row and what the float32 student answers: (n, H) hidden states or (1, L) logits."""

    row: Any
    wanted: Tensor


def with_answers(student: GridStudent, rows: Sequence[Any]) -> list[GridRow]:
    """The rows with the answers of the student as it is now."""
    found: list[GridRow] = []
    with torch.no_grad():
        for start in range(0, len(rows), PASS_ROWS):
            some = rows[start : start + PASS_ROWS]
            parts = student.outputs(some).split([student.positions(row) for row in some])
            found += [GridRow(row, part.clone()) for row, part in zip(some, parts, strict=True)]
    return found


@torch.no_grad()
def gap(student: GridStudent, rows: Sequence[GridRow]) -> Gap:
    """How far the student as it is now answers from what the rows hold."""
    divergences, kept = [], []
    for start in range(0, len(rows), PASS_ROWS):
        some = rows[start : start + PASS_ROWS]
        found = student.gaps(student.outputs([row.row for row in some]), torch.cat([row.wanted for row in some]))
        divergences.append(found[0])
        kept.append(found[1])
    return Gap(float(torch.cat(divergences).mean()), float(torch.cat(kept).float().mean()))


class Rounding:
    """The tensors of one student: linear layers for 4 bits, tables for 8, all others stay float32."""

    def __init__(self, student: GridStudent) -> None:
        """Rounds the tables, in place."""
        self.student = student
        names = {id(value): name for name, value in student.tensors()}
        self.layers = {
            names[id(layer.weight)]: layer for layer in student.trunk.modules() if isinstance(layer, torch.nn.Linear)
        }
        self.codes: dict[str, Codes] = {}
        for table in student.tables:
            assert isinstance(table.weight, Tensor)
            codes = q8_0(table.weight.detach())
            self.codes[names[id(table.weight)]] = codes
            table.weight.data.copy_(dequantize(*codes))

    @property
    def plain(self) -> dict[str, torch.nn.Parameter]:
        """What stays float32, by name: norms, biases, an encoder's head and positions."""
        rounded = self.layers.keys() | self.codes.keys()
        return {name: value for name, value in self.student.tensors() if name not in rounded}

    @torch.no_grad()
    def nearest_gap(self, rows: Sequence[GridRow]) -> Gap:
        """The gap when every layer's weight is rounded on its own, each for as long as the layer is computed."""
        own: dict[torch.nn.Module, Tensor] = {}

        def put(layer: torch.nn.Module, _: Any) -> None:
            assert isinstance(layer.weight, Tensor)
            own[layer] = layer.weight.data
            layer.weight.data = dequantize(*q4_0(layer.weight))

        def put_back(layer: torch.nn.Module, *_: Any) -> None:
            assert isinstance(layer.weight, Tensor)
            layer.weight.data = own.pop(layer)

        hooks = [layer.register_forward_pre_hook(put) for layer in self.layers.values()]
        hooks += [layer.register_forward_hook(put_back, always_call=True) for layer in self.layers.values()]
        try:
            return gap(self.student, rows)
        finally:
            for hook in hooks:
                hook.remove()

    def compensate(self, rows: Sequence[Any]) -> None:
        """Round every layer's weight by `gptq` for these rows, in place; from then on in the dtype of the products.

        `rows` are prepared ones.
        """
        self.codes |= round_layers(self.layers, lambda: self.student.outputs(rows))
        for layer in self.layers.values():
            layer.weight.data = layer.weight.data.to(self.student.dtype)

    def stored(self) -> dict[str, Tensor]:
        """All tensors as a file holds them: NAME.codes (N, K) int8 and NAME.scales (N, K / 32) float16, or NAME."""
        found = {name: value.detach().contiguous() for name, value in self.plain.items()}
        for name, (codes, scales) in self.codes.items():
            found |= {f"{name}.codes": codes.flatten(1).contiguous(), f"{name}.scales": scales.contiguous()}
        return found
