"""ONNX back end for decoders: a graph over the grid's codes, with the names that onnxruntime-genai's builder uses.

Operators of com.microsoft beside those of `onnx_graph`: GroupQueryAttention, SkipSimplifiedLayerNormalization,
FastGelu. What differs between families is data of `Shape` and `Family`; no family is named here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edgestill.export.architecture import EMBEDDING, FINAL_NORM, HEAD, Shape, layer_name, read_shape, to_file
from edgestill.export.families.family import Rope
from edgestill.export.grid import Grid
from edgestill.export.onnx_graph import ACCURACY_LEVEL, Graph, floats, integers


def write_onnx(grid: Grid, path: Path, accuracy_level: int = ACCURACY_LEVEL) -> None:
    """Write the grid as one ONNX file with the weights inside; `accuracy_level` is MatMulNBits'.

    Inputs: input_ids (batch_size, sequence_length) int64, attention_mask (batch_size, total_sequence_length) int64,
    past_key_values.N.key|value (batch_size, G, past_sequence_length, D) float32.
    Outputs: logits (batch_size, 1, V) of the last position, and present.N.key|value, float32.
    """
    shape = read_shape(grid.config)
    stored = {name: to_file(name, tensor, shape) for name, tensor in grid.tensors.items()}
    onnx.save_model(Decoder(Grid(grid.config, stored), shape, accuracy_level).model(), str(path))


class Decoder(Graph):
    """A decoder, written in the order in which it computes. `keeps_state`: it takes and leaves keys and values."""

    keeps_state = True

    def __init__(self, grid: Grid, shape: Shape, accuracy_level: int) -> None:
        super().__init__(grid, accuracy_level)
        self.shape, self.family = shape, shape.family
        self.ropes = list(dict.fromkeys(kind.rope for kind in shape.kinds))

    def model(self) -> Any:
        """The whole graph, in the order in which it computes."""
        lengths = self._lengths()
        hidden = self._embed()
        normed = self._norm(hidden, layer_name(0, "input_layernorm"), "layers.0.input_norm")
        for layer in range(self.shape.layers):
            attention = self._norm_of_part(layer, self.family.attention_norm, self._attention(layer, normed, lengths))
            hidden = self._asked(layer, hidden)
            hidden, normed = self._add_and_norm(hidden, attention, layer_name(layer, self.family.mlp_input_norm))
            last = layer + 1 == self.shape.layers
            following = FINAL_NORM if last else layer_name(layer + 1, "input_layernorm")
            mlp = self._norm_of_part(layer, self.family.mlp_norm, self._mlp(layer, normed))
            hidden, normed = self._add_and_norm(hidden, mlp, following)
        head = HEAD if HEAD in self.grid.tensors else EMBEDDING
        self.matmul(normed, [head], "logits")
        return self._finish()

    def _asked(self, layer: int, x: str) -> str:
        """What of `x` (B, T, K) is asked for after a layer's attention: in the end the last position alone.

        Without state that is the last token which the mask has, so that rows may be padded.
        """
        if layer + 1 < self.shape.layers:
            return x
        if self.keeps_state:
            places = {"last_start": -1, "last_end": np.iinfo(np.int64).max, "axis_1": 1}
            bounds = [self.constant(name, np.array([place], np.int64)) for name, place in places.items()]
            return self.node("Slice", [x, *bounds], f"{x}.last")
        last = "last_token"
        if last not in self.written:
            self.written.add(last)
            self.node("Unsqueeze", ["mask_last", self.constant("axis_1", np.array([1], np.int64))], last)
        return self.node("GatherND", [x, last], f"{x}.last", batch_dims=1)

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
        """Rows of the 8-bit (or float32) embedding; a tied head uses the same bytes in MatMulNBits' layout."""
        if self.grid.tensors[EMBEDDING].kind == "f32":
            found = self.node("Gather", [self.values([EMBEDDING]), "input_ids"], "embedded")
        else:
            codes, scales = self.codes([EMBEDDING])
            flat = self.constant("embedding_shape", np.array([self.shape.vocabulary, self.shape.width], np.int64))
            rows = self.node("Reshape", [codes, flat], "embedding_rows")
            found = self.gather(rows, scales, "embedded")
        if not self.family.scaled_embedding:
            return found
        return self.node("Mul", [found, self.constant("width_root", np.sqrt(np.float32(self.shape.width)))], "scaled")

    def _attention(self, layer: int, normed: str, lengths: tuple[str, str]) -> str:
        kind = self.shape.kinds[layer]
        past = [f"past_key_values.{layer}.{kind}" if self.keeps_state else "" for kind in ("key", "value")]
        # written in any case: without them the operator adds in another order, and int8 makes that a label's difference
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        output = self.node(
            "GroupQueryAttention",
            [*self._query_key_value(layer, normed), *past, *lengths, *self._rope(kind.rope)],
            f"layers.{layer}.attention",
            *present,
            microsoft=True,
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            scale=self.shape.head_size**-0.5,
            **({} if kind.window is None else {"local_window_size": kind.window}),
        )
        asked = self._asked(layer, output)
        return self.matmul(asked, [layer_name(layer, "self_attn.o_proj")], f"layers.{layer}.attention_out")

    def _query_key_value(self, layer: int, normed: str) -> list[str]:
        """GroupQueryAttention's first three inputs: all in one product, parted where heads are normed."""
        parts = [f"self_attn.{p}_proj" for p in "qkv"]
        biased = parts[0] in self.family.biased
        bias = self.values([layer_name(layer, part, "bias") for part in parts]) if biased else ""
        prefix, s = f"layers.{layer}", self.shape
        packed = self.matmul(normed, [layer_name(layer, part) for part in parts], f"{prefix}.qkv", bias)
        if not self.family.head_norms:
            return [packed, "", ""]
        widths = np.array([s.heads, s.kv_heads, s.kv_heads], np.int64) * s.head_size
        q, k, v = (f"{prefix}.{p}" for p in "qkv")
        self.node("Split", [packed, self.constant("qkv_widths", widths)], q, k, v, axis=-1)
        heads = {"q": s.heads, "k": s.kv_heads}
        return [
            *(self._norm_heads(f"{prefix}.{p}", layer_name(layer, f"self_attn.{p}_norm"), heads[p]) for p in "qk"),
            v,
        ]

    def _norm_heads(self, x: str, norm: str, heads: int) -> str:
        """(B, T, heads * D), every head by its own root mean square."""
        apart = self.constant(f"heads_{heads}", np.array([0, 0, heads, self.shape.head_size], np.int64))
        joined = self.constant(f"joined_{heads}", np.array([0, 0, heads * self.shape.head_size], np.int64))
        normed = self._norm(self.node("Reshape", [x, apart], f"{x}.heads"), norm, f"{x}.normed_heads")
        return self.node("Reshape", [normed, joined], f"{x}.normed")

    def _mlp(self, layer: int, normed: str) -> str:
        """down(act(gate(x)) * up(x))."""
        prefix = f"layers.{layer}.mlp"
        gate = self.matmul(normed, [layer_name(layer, "mlp.gate_proj")], f"{prefix}.gate")
        up = self.matmul(normed, [layer_name(layer, "mlp.up_proj")], f"{prefix}.up")
        inner = self.node("Mul", [self._activate(gate, prefix), up], f"{prefix}.inner")
        return self.matmul(inner, [layer_name(layer, "mlp.down_proj")], f"{prefix}.out")

    def _activate(self, gate: str, prefix: str) -> str:
        if self.family.activation == "gelu_tanh":
            return self.node("FastGelu", [gate], f"{prefix}.gelu", microsoft=True)
        return self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{prefix}.sigmoid")], f"{prefix}.silu")

    def _norm_of_part(self, layer: int, norm: str | None, x: str) -> str:
        """What attention or MLP adds to the stream, normed where the family norms it."""
        return x if norm is None else self._norm(x, layer_name(layer, norm), f"{x}.normed")

    def _norm(self, x: str, norm: str, output: str) -> str:
        """Root-mean-square norm over the last axis."""
        attributes: dict[str, Any] = {"epsilon": self.shape.norm_epsilon, "axis": -1, "stash_type": 1}
        return self.node("SimplifiedLayerNormalization", [x, self.values([norm])], output, **attributes)

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

    def _rope(self, rope: Rope) -> tuple[str, str]:
        """Cosine and sine tables (context, D / 2), made once for each rope."""
        place = self.ropes.index(rope)
        names = tuple(f"rope_{which}_{place}" if place else f"rope_{which}" for which in ("cos", "sin"))
        if names[0] not in self.written:
            angles = np.arange(self.shape.context)[:, None] * rope.frequencies(self.shape.head_size)
            self.constant(names[0], np.cos(angles).astype(np.float32))
            self.constant(names[1], np.sin(angles).astype(np.float32))
        return names[0], names[1]

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
            floats("logits", ("batch_size", 1, s.vocabulary)),
            *(floats(f"present.{n}.{kind}", cache[1]) for n, kind in names),
        ]
        return self.finish("decoder", inputs, outputs)
