"""A decoder's ONNX graph that only labels: one forward pass, the last position, the rows of the head that answer.

The numbers are those of the grid. Against the graph of `onnx_writer` it lacks the other rows of the head, keys and
values from call to call, the last layer's work on all positions but one, and rotations past the longest prompt.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgestill.export import parity
from edgestill.export.architecture import EMBEDDING, HEAD, read_shape, to_file
from edgestill.export.grid import Grid
from edgestill.export.onnx_graph import ACCURACY_LEVEL, floats, integers
from edgestill.export.onnx_writer import Decoder


def cut_head(grid: Grid, token_ids: Sequence[int]) -> Grid:
    """The grid with a head of its own, (L, K): the rows of `token_ids` in their order, codes and scales as they are."""
    head = grid.tensors.get(HEAD, grid.tensors[EMBEDDING]).rows(np.array(token_ids, np.int64))
    return Grid({**grid.config, "tie_word_embeddings": False}, {**grid.tensors, HEAD: head})


def write_labels(
    grid: Grid, token_ids: Sequence[int], longest_tokens: int, path: Path, accuracy_level: int = ACCURACY_LEVEL
) -> None:
    """Write the graph as one ONNX file with the weights inside, and read every number of it back.

    Inputs: input_ids and attention_mask (batch_size, sequence_length) int64; the mask is 1 on tokens and 0 on the
    padding to their right. Output: logits (batch_size, L) float32 of the token that follows, by label.

    Args:
        grid: the whole model.
        token_ids: of the labels' answers, in the task's order.
        longest_tokens: of a prompt.
        path: of the file.
        accuracy_level: MatMulNBits'.

    Raises:
        GateFailed: the file holds other numbers than the grid.
    """
    cut = cut_head(grid, token_ids)
    whole = read_shape(cut.config)
    shape = dataclasses.replace(whole, context=min(whole.context, longest_tokens))
    stored = {name: to_file(name, tensor, shape) for name, tensor in cut.tensors.items()}
    onnx.save_model(_Labels(Grid(cut.config, stored), shape, accuracy_level).model(), str(path))
    parity.check_same_numbers(cut, {"onnx": (path, parity.read_onnx)})


class _Labels(Decoder):
    """The decoder of `onnx_writer`, from the last layer's attention on at the last token alone."""

    keeps_state = False

    def _finish(self) -> Any:
        tokens, labels = ("batch_size", "sequence_length"), self.grid.tensors[HEAD].shape[0]
        inputs = [integers("input_ids", tokens), integers("attention_mask", tokens)]
        return self.finish("labels", inputs, [floats("logits", ("batch_size", labels))])
