"""ONNX back end for decoders: a graph over the grid's codes, with the names that onnxruntime-genai's builder uses.

Operators of com.microsoft beside those of `onnx_graph`: GroupQueryAttention, SkipSimplifiedLayerNormalization.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edgestill.export.architecture import EMBEDDING, FINAL_NORM, HEAD, Shape, layer_name, read_shape
from edgestill.export.grid import Grid
from edgestill.export.onnx_graph import Graph, floats, integers


def write_onnx(grid: Grid, path: Path) -> None:
    """Write the grid as one ONNX file with the weights inside.

    Inputs: input_ids (batch_size, sequence_length) int64, attention_mask (batch_size, total_sequence_length) int64,
    past_key_values.N.key|value (batch_size, G, past_sequence_length, D) float32.
    Outputs: logits (batch_size, sequence_length, V) and present.N.key|value, float32.
    """
    onnx.save_model(_Decoder(grid, read_shape(grid.config)).model(), str(path))


class _Decoder(Graph):
    """A Llama-type decoder, written in the order in which it computes."""

    def __init__(self, grid: Grid, shape: Shape) -> None:
        super().__init__(grid)
        self.shape = shape

    def model(self) -> Any:
        """The whole graph, in the order in which it computes."""
        lengths = self._lengths()
        hidden = self._embed()
        normed = self.node(
            "SimplifiedLayerNormalization",
            [hidden, self.values([layer_name(0, "input_layernorm")])],
            "layers.0.input_norm",
            epsilon=self.shape.norm_epsilon,
            axis=-1,
            stash_type=1,
        )
        for layer in range(self.shape.layers):
            attention = self._attention(layer, normed, lengths)
            hidden, normed = self._add_and_norm(hidden, attention, layer_name(layer, "post_attention_layernorm"))
            last = layer + 1 == self.shape.layers
            following = FINAL_NORM if last else layer_name(layer + 1, "input_layernorm")
            hidden, normed = self._add_and_norm(hidden, self._mlp(layer, normed), following)
        head = HEAD if HEAD in self.grid.tensors else EMBEDDING
        self.matmul(normed, [head], "logits")
        return self._finish()

    def _lengths(self) -> tuple[str, str]:
        """GroupQueryAttention's seqlens_k (batch,) = mask sum - 1, and the padded total length, both int32."""
        axis, one = self.constant("axis_1", np.array([1], np.int64)), self.constant("one", np.array([1], np.int64))
        total = self.node("ReduceSum", ["attention_mask", axis], "mask_sum", keepdims=0)
        last = self.node("Sub", [total, one], "mask_last")
        seqlens = self.node("Cast", [last], "seqlens_k", to=TensorProto.INT32)
        dims = self.node("Shape", ["attention_mask"], "mask_shape", start=1, end=2)
        scalar = self.node("Squeeze", [dims, self.constant("axis_0", np.array([0], np.int64))], "mask_length")
        return seqlens, self.node("Cast", [scalar], "total_sequence_length", to=TensorProto.INT32)

    def _embed(self) -> str:
        """Rows of the 8-bit embedding; a tied head uses the same bytes in MatMulNBits' layout."""
        codes, scales = self.codes([EMBEDDING])
        flat = self.constant("embedding_shape", np.array([self.shape.vocabulary, self.shape.width], np.int64))
        rows = self.node("Reshape", [codes, flat], "embedding_rows")
        return self.gather(rows, scales, "embedded")

    def _attention(self, layer: int, normed: str, lengths: tuple[str, str]) -> str:
        parts = [layer_name(layer, f"self_attn.{p}_proj") for p in "qkv"]
        packed = self.matmul(normed, parts, f"layers.{layer}.qkv")
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        output = self.node(
            "GroupQueryAttention",
            [packed, "", "", *past, *lengths, *self._rope()],
            f"layers.{layer}.attention",
            *present,
            microsoft=True,
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            scale=self.shape.head_size**-0.5,
        )
        return self.matmul(output, [layer_name(layer, "self_attn.o_proj")], f"layers.{layer}.attention_out")

    def _mlp(self, layer: int, normed: str) -> str:
        """down(silu(gate(x)) * up(x))."""
        prefix = f"layers.{layer}.mlp"
        gate = self.matmul(normed, [layer_name(layer, "mlp.gate_proj")], f"{prefix}.gate")
        up = self.matmul(normed, [layer_name(layer, "mlp.up_proj")], f"{prefix}.up")
        silu = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{prefix}.sigmoid")], f"{prefix}.silu")
        inner = self.node("Mul", [silu, up], f"{prefix}.inner")
        return self.matmul(inner, [layer_name(layer, "mlp.down_proj")], f"{prefix}.out")

    def _add_and_norm(self, hidden: str, update: str, norm: str) -> tuple[str, str]:
        """(hidden + update, its root-mean-square norm) in one operator."""
        outputs = [f"{norm}.normed", "", "", f"{norm}.sum"]
        self.node(
            "SkipSimplifiedLayerNormalization",
            [hidden, update, self.values([norm])],
            *(outputs if norm != FINAL_NORM else outputs[:1]),
            microsoft=True,
            epsilon=self.shape.norm_epsilon,
        )
        return outputs[3], outputs[0]

    def _rope(self) -> tuple[str, str]:
        """Cosine and sine tables (context, D / 2), made once (RoFormer, arXiv 2104.09864)."""
        if "rope" not in self.written:
            self.written.add("rope")
            half = np.arange(0, self.shape.head_size, 2, dtype=np.float64) / self.shape.head_size
            angles = np.arange(self.shape.context)[:, None] * self.shape.rope_theta**-half
            self.constant("rope_cos", np.cos(angles).astype(np.float32))
            self.constant("rope_sin", np.sin(angles).astype(np.float32))
        return "rope_cos", "rope_sin"

    def _finish(self) -> Any:
        s = self.shape
        cache = [
            ("batch_size", s.kv_heads, length, s.head_size)
            for length in ("past_sequence_length", "total_sequence_length")
        ]
        names = [(layer, kind) for layer in range(s.layers) for kind in ("key", "value")]
        inputs = [
            integers("input_ids", ("batch_size", "sequence_length")),
            integers("attention_mask", ("batch_size", "total_sequence_length")),
            *(floats(f"past_key_values.{n}.{kind}", cache[0]) for n, kind in names),
        ]
        outputs = [
            floats("logits", ("batch_size", "sequence_length", s.vocabulary)),
            *(floats(f"present.{n}.{kind}", cache[1]) for n, kind in names),
        ]
        return self.finish("decoder", inputs, outputs)
