"""What both ONNX graphs are made of: constants, nodes, and weights as the grid's codes. Knows no architecture.

Operators of com.microsoft (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md): MatMulNBits
without zero points and 8-bit GatherBlockQuantized. Scales are stored as float16 behind a Cast, which the session folds
when it loads: half the bytes, the same values.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgestill.export.grid import BLOCK, Grid, GridTensor

OPSET = 21
IR_VERSION = 10
MICROSOFT_OPSET = 1
# 4: activations are rounded to int8 per block, as llama.cpp does for these formats. Results differ between processors.
ACCURACY_LEVEL = 4
ZERO_POINTS = {"q4_0": 8, "q8_0": 128}  # what MatMulNBits assumes when none is given
BITS = {"q4_0": 4, "q8_0": 8}


class Graph:
    """Collects nodes and initializers while a graph over one grid is written from top to bottom."""

    def __init__(self, grid: Grid, accuracy_level: int = ACCURACY_LEVEL) -> None:
        """`accuracy_level` is MatMulNBits': 4 rounds activations to int8, 1 keeps them float32."""
        self.grid = grid
        self.accuracy_level = accuracy_level
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.written: set[str] = set()  # names of initializers; what is used twice (a tied head) is stored once

    def matmul(self, x: str, names: list[str], output: str, bias: str = "") -> str:
        """X times the transposed weights, several of them side by side, plus `bias`; (..., K) -> (..., sum of N)."""
        tensors = [self.grid.tensors[name] for name in names]
        if tensors[0].kind == "f32":
            return self._float_matmul(x, names, output, bias)
        codes, scales = self.codes(names)
        n, k = sum(t.shape[0] for t in tensors), tensors[0].shape[1]
        attributes = {"K": k, "N": n, "bits": BITS[tensors[0].kind], "block_size": BLOCK}
        inputs = [x, codes, scales, *(["", "", bias] if bias else [])]
        return self.node(
            "MatMulNBits", inputs, output, microsoft=True, accuracy_level=self.accuracy_level, **attributes
        )

    def _float_matmul(self, x: str, names: list[str], output: str, bias: str) -> str:
        """The same product in float32; weights stay (N, K) in the file, so that a tied head is the embedding."""
        turned = self.node("Transpose", [self.values(names)], f"{'+'.join(names)}.transposed", perm=[1, 0])
        if not bias:
            return self.node("MatMul", [x, turned], output)
        return self.node("Add", [self.node("MatMul", [x, turned], f"{output}.product"), bias], output)

    def gather(self, rows: str, scales: str, output: str) -> str:
        """Rows of an 8-bit table (V, K) by `input_ids`; (B, T) -> (B, T, K)."""
        attributes = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        return self.node("GatherBlockQuantized", [rows, "input_ids", scales], output, microsoft=True, **attributes)

    def codes(self, names: list[str], shape: tuple[int, ...] | None = None) -> tuple[str, str]:
        """Initializers of one weight (or several with their rows joined): packed codes, and scales behind a Cast.

        `shape` is the codes' shape in the file, MatMulNBits' own unless given.
        """
        stem = "+".join(names)
        if stem not in self.written:
            self.written.add(stem)
            tensors = [self.grid.tensors[name] for name in names]
            packed = np.concatenate([pack_codes(t) for t in tensors])
            self.constant(f"{stem}.codes", packed if shape is None else packed.reshape(shape))
            self.constant(f"{stem}.scales_f16", np.concatenate([_scales(t) for t in tensors]))
            self.node("Cast", [f"{stem}.scales_f16"], f"{stem}.scales", to=TensorProto.FLOAT)
        return f"{stem}.codes", f"{stem}.scales"

    def values(self, names: list[str]) -> str:
        """Initializer of one float32 tensor, or of several one after the other, under their joined names."""
        stem = "+".join(names)
        return self.constant(stem, np.concatenate([self.grid.tensors[name].dequantize() for name in names]))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Initializer under `name`; asked for again, it is the one that is there."""
        if name not in self.written:
            self.written.add(name)
            self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, kind: str, inputs: list[str], *outputs: str, microsoft: bool = False, **attributes: Any) -> str:
        """One operator; the name of its first output. An input or output that is not wanted is called ""."""
        domain = "com.microsoft" if microsoft else ""
        name = f"{outputs[0]}.node"
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def finish(self, name: str, inputs: list[Any], outputs: list[Any]) -> Any:
        """The whole model; inputs and outputs come from `integers` and `floats`."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", MICROSOFT_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgestill")


def integers(name: str, shape: tuple[int | str, ...]) -> Any:
    """An int64 input; a dimension with a name may have any size."""
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def floats(name: str, shape: tuple[int | str, ...]) -> Any:
    """A float32 input or output; a dimension with a name may have any size."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


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
