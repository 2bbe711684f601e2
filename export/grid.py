"""The grid: every tensor as integer codes and float16 scales. The one source that all back ends read. numpy only.

Formats are ggml's (https://github.com/ggml-org/ggml, block_q4_0 and block_q8_0): blocks of 32 along the input axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime.errors import EdgestillError

BLOCK = 32
CHUNK_WEIGHTS = 1 << 18  # rounded at a time: what is computed from 1 MB of float32 stays in the cache
BITS_PER_WEIGHT = {"q4_0": 4.5, "q8_0": 8.5, "f32": 32.0}

Kind = Literal["q4_0", "q8_0", "f32"]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GridTensor:
    """One tensor on the grid.

    For q4_0 and q8_0: codes (N, K) int8, in [-8, 7] or [-127, 127], and scales (N, K / 32) float16; the value of
    element (n, k) is scales[n, k // 32] * codes[n, k]. For f32: values, any shape.
    """

    kind: Kind
    codes: NDArray[np.int8] | None = None
    scales: NDArray[np.float16] | None = None
    values: Floats | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dequantized tensor."""
        array = self.values if self.codes is None else self.codes
        assert array is not None
        return array.shape

    def dequantize(self) -> Floats:
        """The float32 values that every artifact holds."""
        if self.codes is None or self.scales is None:
            assert self.values is not None
            return self.values
        blocks = self.codes.reshape(len(self.codes), -1, BLOCK).astype(np.float32)
        return (blocks * self.scales[..., None].astype(np.float32)).reshape(self.shape)

    def rows(self, order: NDArray[np.int64]) -> "GridTensor":
        """The same tensor with its rows in another order; exact, because no block spans two rows."""
        if self.codes is None or self.scales is None:
            assert self.values is not None
            return GridTensor(self.kind, values=self.values[order])
        return GridTensor(self.kind, self.codes[order], self.scales[order])


@dataclass(frozen=True)
class Grid:
    """All tensors by their Hugging Face names, with the model's config.json. A tied head has no tensor of its own."""

    config: dict[str, Any]
    tensors: dict[str, GridTensor]

    @property
    def bits_per_weight(self) -> float:
        """Mean over all parameters."""
        sizes = {name: int(np.prod(t.shape)) for name, t in self.tensors.items()}
        bits = sum(sizes[name] * BITS_PER_WEIGHT[t.kind] for name, t in self.tensors.items())
        return bits / sum(sizes.values())

    @property
    def parameters(self) -> int:
        """How many weights there are, a tied head counted once."""
        return sum(int(np.prod(t.shape)) for t in self.tensors.values())


def read_grid(path: Path, config: dict[str, Any], kinds: Mapping[str, Kind]) -> Grid:
    """The grid as training left it, codes and scales; nothing is rounded.

    Args:
        path: safetensors with NAME.codes (N, K) int8 and NAME.scales (N, K / 32) float16, or NAME float32.
        config: the model's config.json.
        kinds: every tensor's name, in the order of the grid, and how the files to be written store it.

    Raises:
        EdgestillError: other tensors than `kinds` names, or of other kinds.
    """
    from safetensors.numpy import load_file

    stored = load_file(path)
    tensors = {}
    for name, kind in kinds.items():
        codes = stored.pop(f"{name}.codes", None)
        if (codes is None) is not (kind == "f32") or (codes is None and name not in stored):
            raise EdgestillError(f"{path} has no tensor {name} as {kind}", "run train again")
        if codes is None:
            tensors[name] = GridTensor("f32", values=stored.pop(name))
        else:
            tensors[name] = GridTensor(kind, codes, stored.pop(f"{name}.scales"))
    if stored:
        raise EdgestillError(f"{path} has tensors that the model lacks: {sorted(stored)[:3]}", "run train again")
    return Grid(config, tensors)


def quantize(name: str, values: Floats, kind: Kind) -> GridTensor:
    """Round a tensor to the grid.

    Args:
        name: for the error message.
        values: (N, K) float32, K a multiple of 32 unless kind is f32.
        kind: q4_0, q8_0 or f32.

    Raises:
        EdgestillError: a value that is not finite, or so large that its scale is no float16.
    """
    if not np.isfinite(values).all():
        raise EdgestillError(
            f"the tensor {name} holds values that are not finite", "train again with a lower learning rate"
        )
    if kind == "f32":
        return GridTensor("f32", values=np.ascontiguousarray(values, np.float32))
    rounded, step = _q4_0 if kind == "q4_0" else _q8_0, max(1, CHUNK_WEIGHTS // values.shape[1])
    codes, scales = np.empty(values.shape, np.int8), np.empty((len(values), values.shape[1] // BLOCK), np.float16)
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        some = values[rows].astype(np.float32)
        found, scales[rows] = rounded(some.reshape(len(some), -1, BLOCK))
        codes[rows] = found.reshape(some.shape)
    if not np.isfinite(scales).all():
        raise EdgestillError(f"the tensor {name} has a block too large for a float16 scale", "train again")
    return GridTensor(kind, codes, scales)


def _q4_0(blocks: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Ggml's quantize_row_q4_0: the value farthest from zero becomes -8; codes come from the unrounded scale."""
    farthest = np.abs(blocks).argmax(-1, keepdims=True)
    scale = np.take_along_axis(blocks, farthest, -1) / np.float32(-8)
    raw = np.trunc(blocks * _inverse(scale) + np.float32(8.5))
    return (np.clip(raw, 0, 15) - 8).astype(np.int8), _to_f16(scale[..., 0])


def _q8_0(blocks: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Ggml's quantize_row_q8_0: scale is the largest magnitude / 127, halves round away from zero."""
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    rounded = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    return rounded.astype(np.int8), _to_f16(scale[..., 0])


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 where that is no number: such a block's float16 scale is 0, so its codes mean nothing."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _to_f16(scale: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return scale.astype(np.float16)
