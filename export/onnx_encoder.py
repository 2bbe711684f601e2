"""ONNX back end for encoders: trunk, pooling and head in one graph over the grid's codes.

Operators of com.microsoft beside those of `onnx_graph`: MultiHeadAttention, SkipLayerNormalization, Gelu (with erf).
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edgestill.export.bert import (
    EMBEDDING_NORM,
    HEAD_DENSE,
    HEAD_OUT,
    POSITIONS,
    TOKEN_TYPES,
    WORDS,
    layer_name,
    read_shape,
)
from edgestill.export.grid import Grid
from edgestill.export.onnx_graph import ACCURACY_LEVEL, Graph, floats, integers


def write_encoder(grid: Grid, pooling: str, path: Path, accuracy_level: int = ACCURACY_LEVEL) -> None:
    """Write the grid as one ONNX file with the weights inside.

    Inputs: input_ids and attention_mask (batch_size, sequence_length) int64; the mask is 1 on tokens and 0 on the
    padding to their right. Output: logits (batch_size, L) float32.

    Args:
        grid: trunk and head.
        pooling: mean over the tokens, or cls, the first token through the head's dense layer.
        path: of the file.
        accuracy_level: MatMulNBits'.
    """
    onnx.save_model(_Encoder(grid, pooling, accuracy_level).model(), str(path))


class _Encoder(Graph):
    """An encoder of a BERT type, written in the order in which it computes."""

    def __init__(self, grid: Grid, pooling: str, accuracy_level: int) -> None:
        super().__init__(grid, accuracy_level)
        self.shape = read_shape(grid.config)
        self.pooling = pooling

    def model(self) -> Any:
        """The whole graph, in the order in which it computes."""
        hidden = self._embed()
        mask = self.node("Cast", ["attention_mask"], "key_padding_mask", to=TensorProto.INT32)
        for layer in range(self.shape.layers):
            attention = self._attention(layer, hidden, mask)
            hidden = self._add_and_norm(hidden, attention, layer_name(layer, "attention.output.LayerNorm"))
            hidden = self._add_and_norm(hidden, self._mlp(layer, hidden), layer_name(layer, "output.LayerNorm"))
        if self.pooling == "mean":
            pooled = self._mean(hidden)
        else:
            pooled = self.node("Tanh", [self._linear(self._first(hidden), HEAD_DENSE, "dense")], "dense_tanh")
        self._linear(pooled, HEAD_OUT, "logits")
        return self._finish()

    def _embed(self) -> str:
        """Norm of word + position + token type 0."""
        codes, scales = self.codes([WORDS], (self.shape.vocabulary, self.shape.width))
        words = self.gather(codes, scales, "words")
        first = self.constant("first_position", np.array([self.shape.first_position], np.int64))
        length = self.node("Shape", ["input_ids"], "length", start=1, end=2)
        end = self.node("Add", [length, first], "end_position")
        axis = self.constant("axis_0", np.array([0], np.int64))
        positions = self.node("Slice", [self.values([POSITIONS]), first, end, axis], "positions")
        token_type = self.node("Gather", [self.values([TOKEN_TYPES]), self._zero()], "token_type")
        return self._add_and_norm(words, positions, EMBEDDING_NORM, token_type)

    def _attention(self, layer: int, hidden: str, mask: str) -> str:
        prefix = f"layers.{layer}.attention"
        parts = [layer_name(layer, f"attention.self.{part}") for part in ("query", "key", "value")]
        packed = self._quantized(hidden, parts, f"{prefix}.qkv")
        split = [f"{prefix}.{part}" for part in ("query", "key", "value")]
        self.node("Split", [packed], *split, axis=-1, num_outputs=3)
        inputs = [*split, "", mask]
        mixed = self.node("MultiHeadAttention", inputs, prefix, microsoft=True, num_heads=self.shape.heads)
        return self._quantized(mixed, [layer_name(layer, "attention.output.dense")], f"{prefix}.out")

    def _mlp(self, layer: int, hidden: str) -> str:
        """output(gelu(intermediate(x))), Gelu with erf (arXiv 1606.08415)."""
        prefix = f"layers.{layer}.mlp"
        inner = self._quantized(hidden, [layer_name(layer, "intermediate.dense")], f"{prefix}.inner")
        active = self.node("Gelu", [inner], f"{prefix}.gelu", microsoft=True)
        return self._quantized(active, [layer_name(layer, "output.dense")], f"{prefix}.out")

    def _mean(self, hidden: str) -> str:
        """Mean of the hidden states where the mask is 1; (B, T, K) -> (B, K)."""
        mask = self.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        axis = self.constant("axis_1", np.array([1], np.int64))
        row = self.node("Unsqueeze", [mask, axis], "mask_row")
        total = self.node("Squeeze", [self.node("MatMul", [row, hidden], "sum_row"), axis], "sum")
        return self.node("Div", [total, self.node("ReduceSum", [mask, axis], "tokens", keepdims=1)], "mean")

    def _first(self, hidden: str) -> str:
        """Hidden state of the first token; (B, T, K) -> (B, K)."""
        return self.node("Gather", [hidden, self._zero()], "first", axis=1)

    def _zero(self) -> str:
        return self.constant("zero", np.array(0, np.int64))

    def _add_and_norm(self, hidden: str, update: str, norm: str, bias: str = "") -> str:
        """Layer norm of hidden + update (+ bias) in one operator."""
        weights = [self.values([f"{norm}.weight"]), self.values([f"{norm}.bias"]), *([bias] if bias else [])]
        inputs, epsilon = [hidden, update, *weights], self.shape.norm_epsilon
        return self.node("SkipLayerNormalization", inputs, f"{norm}.normed", microsoft=True, epsilon=epsilon)

    def _quantized(self, x: str, stems: list[str], output: str) -> str:
        """Linear layers of the trunk side by side, with their biases."""
        bias = self.values([f"{stem}.bias" for stem in stems])
        return self.matmul(x, [f"{stem}.weight" for stem in stems], output, bias)

    def _linear(self, x: str, stem: str, output: str) -> str:
        """A float32 linear layer of the head; (B, K) -> (B, N)."""
        return self.node("Gemm", [x, self.values([f"{stem}.weight"]), self.values([f"{stem}.bias"])], output, transB=1)

    def _finish(self) -> Any:
        tokens = ("batch_size", "sequence_length")
        labels = self.grid.tensors[f"{HEAD_OUT}.bias"].shape[0]
        inputs = [integers("input_ids", tokens), integers("attention_mask", tokens)]
        return self.finish("encoder", inputs, [floats("logits", ("batch_size", labels))])
