"""ONNX back end: a decoder graph over the grid's codes, with the names that onnxruntime-genai's builder uses.

Operators of com.microsoft (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md):
GroupQueryAttention, MatMulNBits without zero points, 8-bit GatherBlockQuantized, SkipSimplifiedLayerNormalization.
Scales are stored as float16 behind a Cast, which the session folds when it loads: half the bytes, the same values.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgestill.export.architecture import EMBEDDING, FINAL_NORM, HEAD, Shape, layer_name, read_shape
from edgestill.export.grid import BLOCK, Grid, GridTensor

OPSET = 21
IR_VERSION = 10
MICROSOFT_OPSET = 1
# 4: activations are rounded to int8 per block, as llama.cpp does for these formats. Results differ between processors.
ACCURACY_LEVEL = 4
ZERO_POINTS = {"q4_0": 8, "q8_0": 128}  # what MatMulNBits assumes when none is given
BITS = {"q4_0": 4, "q8_0": 8}


def write_onnx(grid: Grid, path: Path) -> None:
    """Write the grid as one ONNX file with the weights inside.

    Inputs: input_ids (batch_size, sequence_length) int64, attention_mask (batch_size, total_sequence_length) int64,
    past_key_values.N.key|value (batch_size, G, past_sequence_length, D) float32.
    Outputs: logits (batch_size, sequence_length, V) and present.N.key|value, float32.
    """
    onnx.save_model(_Decoder(grid, read_shape(grid.config)).model(), str(path))


class _Decoder:
    """Collects nodes and initializers while the graph is written from top to bottom."""

    def __init__(self, grid: Grid, shape: Shape) -> None:
        self.grid = grid
        self.shape = shape
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.written: set[str] = set()  # weights used twice (a tied head) and tables used by every layer

    def model(self) -> Any:
        """The whole graph, in the order in which it computes."""
        lengths = self._lengths()
        hidden = self._embed()
        normed = self._node(
            "SimplifiedLayerNormalization",
            [hidden, self._norm(layer_name(0, "input_layernorm"))],
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
        self._matmul(normed, [head], "logits")
        return self._finish()

    def _lengths(self) -> tuple[str, str]:
        """GroupQueryAttention's seqlens_k (batch,) = mask sum - 1, and the padded total length, both int32."""
        axis, one = self._constant("axis_1", np.array([1], np.int64)), self._constant("one", np.array([1], np.int64))
        total = self._node("ReduceSum", ["attention_mask", axis], "mask_sum", keepdims=0)
        last = self._node("Sub", [total, one], "mask_last")
        seqlens = self._node("Cast", [last], "seqlens_k", to=TensorProto.INT32)
        dims = self._node("Shape", ["attention_mask"], "mask_shape", start=1, end=2)
        scalar = self._node("Squeeze", [dims, self._constant("axis_0", np.array([0], np.int64))], "mask_length")
        return seqlens, self._node("Cast", [scalar], "total_sequence_length", to=TensorProto.INT32)

    def _embed(self) -> str:
        """Rows of the 8-bit embedding; a tied head uses the same bytes in MatMulNBits' layout."""
        codes, scales = self._codes([EMBEDDING])
        flat = self._constant("embedding_shape", np.array([self.shape.vocabulary, self.shape.width], np.int64))
        rows = self._node("Reshape", [codes, flat], "embedding_rows")
        attributes = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        return self._node("GatherBlockQuantized", [rows, "input_ids", scales], "embedded", microsoft=True, **attributes)

    def _attention(self, layer: int, normed: str, lengths: tuple[str, str]) -> str:
        parts = [layer_name(layer, f"self_attn.{p}_proj") for p in "qkv"]
        packed = self._matmul(normed, parts, f"layers.{layer}.qkv")
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        output = f"layers.{layer}.attention"
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [packed, "", "", *past, *lengths, *self._rope()],
                [output, *present],
                name=output,
                domain="com.microsoft",
                num_heads=self.shape.heads,
                kv_num_heads=self.shape.kv_heads,
                do_rotary=1,
                rotary_interleaved=0,
                scale=self.shape.head_size**-0.5,
            )
        )
        return self._matmul(output, [layer_name(layer, "self_attn.o_proj")], f"layers.{layer}.attention_out")

    def _mlp(self, layer: int, normed: str) -> str:
        """down(silu(gate(x)) * up(x))."""
        prefix = f"layers.{layer}.mlp"
        gate = self._matmul(normed, [layer_name(layer, "mlp.gate_proj")], f"{prefix}.gate")
        up = self._matmul(normed, [layer_name(layer, "mlp.up_proj")], f"{prefix}.up")
        silu = self._node("Mul", [gate, self._node("Sigmoid", [gate], f"{prefix}.sigmoid")], f"{prefix}.silu")
        inner = self._node("Mul", [silu, up], f"{prefix}.inner")
        return self._matmul(inner, [layer_name(layer, "mlp.down_proj")], f"{prefix}.out")

    def _add_and_norm(self, hidden: str, update: str, norm: str) -> tuple[str, str]:
        """(hidden + update, its root-mean-square norm) in one operator."""
        outputs = [f"{norm}.normed", "", "", f"{norm}.sum"]
        inputs = [hidden, update, self._norm(norm)]
        self.nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                inputs,
                outputs if norm != FINAL_NORM else outputs[:1],
                name=f"{norm}.node",
                domain="com.microsoft",
                epsilon=self.shape.norm_epsilon,
            )
        )
        return outputs[3], outputs[0]

    def _matmul(self, x: str, names: list[str], output: str) -> str:
        """X times the transposed weights, several of them side by side; (..., K) -> (..., sum of N)."""
        tensors = [self.grid.tensors[name] for name in names]
        codes, scales = self._codes(names)
        n, k = sum(t.shape[0] for t in tensors), tensors[0].shape[1]
        attributes = {"K": k, "N": n, "bits": BITS[tensors[0].kind], "block_size": BLOCK}
        inputs = [x, codes, scales]
        return self._node("MatMulNBits", inputs, output, microsoft=True, accuracy_level=ACCURACY_LEVEL, **attributes)

    def _codes(self, names: list[str]) -> tuple[str, str]:
        """Initializers of one weight (or several with their rows joined): packed codes, and scales behind a Cast."""
        stem = "+".join(names)
        if stem not in self.written:
            self.written.add(stem)
            tensors = [self.grid.tensors[name] for name in names]
            self._constant(f"{stem}.codes", np.concatenate([pack_codes(t) for t in tensors]))
            self._constant(f"{stem}.scales_f16", np.concatenate([_scales(t) for t in tensors]))
            self._node("Cast", [f"{stem}.scales_f16"], f"{stem}.scales", to=TensorProto.FLOAT)
        return f"{stem}.codes", f"{stem}.scales"

    def _norm(self, name: str) -> str:
        return self._constant(name, self.grid.tensors[name].dequantize())

    def _rope(self) -> tuple[str, str]:
        """Cosine and sine tables (context, D / 2), made once (RoFormer, arXiv 2104.09864)."""
        if "rope" not in self.written:
            self.written.add("rope")
            half = np.arange(0, self.shape.head_size, 2, dtype=np.float64) / self.shape.head_size
            angles = np.arange(self.shape.context)[:, None] * self.shape.rope_theta**-half
            self._constant("rope_cos", np.cos(angles).astype(np.float32))
            self._constant("rope_sin", np.sin(angles).astype(np.float32))
        return "rope_cos", "rope_sin"

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, microsoft: bool = False, **attributes: Any) -> str:
        domain = "com.microsoft" if microsoft else ""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}.node", domain=domain, **attributes))
        return output

    def _finish(self) -> Any:
        s = self.shape
        cache = [
            ("batch_size", s.kv_heads, length, s.head_size)
            for length in ("past_sequence_length", "total_sequence_length")
        ]
        names = [(layer, kind) for layer in range(s.layers) for kind in ("key", "value")]
        inputs = [
            _value("input_ids", TensorProto.INT64, ("batch_size", "sequence_length")),
            _value("attention_mask", TensorProto.INT64, ("batch_size", "total_sequence_length")),
            *(_value(f"past_key_values.{n}.{kind}", TensorProto.FLOAT, cache[0]) for n, kind in names),
        ]
        outputs = [
            _value("logits", TensorProto.FLOAT, ("batch_size", "sequence_length", s.vocabulary)),
            *(_value(f"present.{n}.{kind}", TensorProto.FLOAT, cache[1]) for n, kind in names),
        ]
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", MICROSOFT_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgestill")


def pack_codes(tensor: GridTensor) -> NDArray[np.uint8]:
    """Codes as MatMulNBits reads them: (N, K / 32, 16), neighbours in one byte, for 4 bits; (N, K / 32, 32) for 8."""
    assert tensor.codes is not None
    shifted = (tensor.codes.astype(np.int16) + ZERO_POINTS[tensor.kind]).astype(np.uint8)
    blocks = shifted.reshape(len(shifted), -1, BLOCK)
    if tensor.kind == "q8_0":
        return blocks
    return np.asarray(blocks[..., 0::2] | (blocks[..., 1::2] << 4), np.uint8)


def _scales(tensor: GridTensor) -> NDArray[np.float16]:
    assert tensor.scales is not None
    return tensor.scales


def _value(name: str, kind: int, shape: tuple[int | str, ...]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)
