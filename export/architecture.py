"""A decoder's dimensions, and its tensors by name: here, in GGUF, and what differs in how both files store them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.export.families.family import Family, Layer
from edgestill.export.families.gemma import GEMMA3
from edgestill.export.families.llama import LLAMA
from edgestill.export.families.qwen import QWEN2, QWEN3
from edgestill.export.grid import Floats, Grid, GridTensor, Kind

FAMILIES = {family.architecture: family for family in (LLAMA, QWEN2, QWEN3, GEMMA3)}
SUPPORTED = tuple(FAMILIES)
# Longest input of what is built, in tokens: tables of cosines for 131,072 positions would outweigh a small model.
MAX_CONTEXT_TOKENS = 8192

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
_GGUF_TOP = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder: L layers, H query and G key/value heads of size D, widths, vocabulary V.

    `kinds` says of each layer how it attends; `context` is in tokens.
    """

    family: Family
    kinds: tuple[Layer, ...]
    heads: int
    kv_heads: int
    head_size: int
    width: int
    inner: int
    vocabulary: int
    context: int
    norm_epsilon: float
    tied: bool

    @property
    def layers(self) -> int:
        """L."""
        return len(self.kinds)


def family_name(config: dict[str, Any]) -> str:
    """The architecture that config.json names; its model_type where it names none."""
    return str((config.get("architectures") or [config.get("model_type")])[0])


def read_shape(config: dict[str, Any]) -> Shape:
    """Dimensions from a config.json that `plan.check_base` has let pass."""
    family = FAMILIES[family_name(config)]
    config = {**(family.defaults or {}), **config}
    heads, width = config["num_attention_heads"], config["hidden_size"]
    return Shape(
        family=family,
        kinds=family.layers(config),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or width // heads,
        width=width,
        inner=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        context=min(config["max_position_embeddings"], MAX_CONTEXT_TOKENS),
        norm_epsilon=float(config["rms_norm_eps"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def layer_name(layer: int, part: str, suffix: str = "weight") -> str:
    """Hugging Face name of one block tensor, such as `self_attn.q_proj` of layer 3."""
    return f"model.layers.{layer}.{part}.{suffix}"


def tensor_names(shape: Shape) -> Iterator[str]:
    """Every tensor of the model by its Hugging Face name, in a fixed order; a tied head has none."""
    yield EMBEDDING
    for layer in range(shape.layers):
        for part in shape.family.block:
            yield layer_name(layer, part)
            if part in shape.family.biased:
                yield layer_name(layer, part, "bias")
    yield FINAL_NORM
    if not shape.tied:
        yield HEAD


def storage_kind(name: str, quantization: Kind) -> Kind:
    """How a tensor is stored: norms and biases in full, embedding and head at 8 bits, the rest as the recipe says."""
    if is_norm(name) or name.endswith(".bias"):
        return "f32"
    return "q8_0" if name in (EMBEDDING, HEAD) else quantization


def is_norm(name: str) -> bool:
    """Whether a tensor is the weight of a norm."""
    return name.endswith("norm.weight")


def rows_of(name: str, shape: Shape) -> int:
    """Rows of a query, key or value projection (or entries of its bias)."""
    return shape.head_size * (shape.heads if name.split(".")[-2] == "q_proj" else shape.kv_heads)


def to_file(name: str, tensor: GridTensor, shape: Shape) -> GridTensor:
    """A tensor as both files hold it: norms with the offset added that the family multiplies by."""
    if not shape.family.norm_offset or not is_norm(name):
        return tensor
    return GridTensor("f32", values=tensor.dequantize() + np.float32(shape.family.norm_offset))


def from_file(name: str, values: Floats, shape: Shape) -> Floats:
    """What `to_file` was given, exactly, if `exact_norms` has seen it before."""
    return values - np.float32(shape.family.norm_offset) if is_norm(name) else values


def exact_norms(grid: Grid) -> Grid:
    """The grid, its norms moved by at most one rounding so that their offset can be added and taken away exactly."""
    shape = read_shape(grid.config)
    moved = {
        name: GridTensor("f32", values=from_file(name, to_file(name, tensor, shape).dequantize(), shape))
        for name, tensor in grid.tensors.items()
        if is_norm(name)
    }
    return Grid(grid.config, {**grid.tensors, **moved})


def gguf_name(name: str, shape: Shape) -> str:
    """GGUF's name of a tensor (llama.cpp, gguf-py constants.py)."""
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    stem, suffix = name.rsplit(".", 1)
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{shape.family.block[part]}.{suffix}"


def gguf_constants(shape: Shape) -> dict[str, Floats]:
    """Tensors of the GGUF file that are none of the model's: (D / 2,) divisors of a stretched rope's frequencies."""
    rope = shape.kinds[0].rope
    return {} if rope.scaling is None else {"rope_freqs.weight": rope.divisors(shape.head_size).astype(np.float32)}


def gguf_row_order(name: str, shape: Shape) -> NDArray[np.int64] | None:
    """Row order in the GGUF file: query and key rows pair up neighbours for rope; None when rows stay as they are."""
    if not shape.family.adjacent_rope or name.split(".")[-2] not in ("q_proj", "k_proj"):
        return None
    rows = np.arange(rows_of(name, shape))
    return rows.reshape(-1, 2, shape.head_size // 2).swapaxes(1, 2).reshape(-1)
