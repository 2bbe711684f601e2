"""The table of the BERT types (BERT, RoBERTa, XLM-RoBERTa): dimensions, names of tensors, how each is stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgestill.export.grid import Floats, Grid, GridTensor, Kind, quantize
from edgestill.runtime.errors import EdgestillError

FAMILIES = ("bert", "roberta", "xlm-roberta")

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
EMBEDDING_NORM = "embeddings.LayerNorm"
HEAD_DENSE, HEAD_OUT = "head.dense", "head.out"
_LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_GGUF_TOP = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    EMBEDDING_NORM: "token_embd_norm",
    HEAD_DENSE: "cls",
    HEAD_OUT: "cls.output",
}
_GGUF_BLOCK = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_DEFAULT_PAD_TOKEN_ID = 1  # what transformers takes for a RoBERTa type whose config.json names none


@dataclass(frozen=True)
class BertShape:
    """The dimensions of an encoder: L layers, H heads, width, vocabulary V; `context` is its longest input in tokens.

    `first_position` is the row of the position table for the first token: RoBERTa's types count from the padding id on.
    """

    layers: int
    heads: int
    width: int
    inner: int
    vocabulary: int
    context: int
    first_position: int
    norm_epsilon: float


def read_shape(config: dict[str, Any]) -> BertShape:
    """Dimensions from a config.json that `plan.check_base` has let pass."""
    first = 0 if config["model_type"] == "bert" else config.get("pad_token_id", _DEFAULT_PAD_TOKEN_ID) + 1
    return BertShape(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"] - first,
        first_position=first,
        norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
    )


def layer_name(layer: int, part: str) -> str:
    """Name of one part of a block without `.weight` or `.bias`, such as `attention.self.query` of layer 3."""
    return f"encoder.layer.{layer}.{part}"


def tensor_names(shape: BertShape, dense: bool) -> Iterator[str]:
    """Every tensor of the model in a fixed order; `dense` is whether the head has a layer before its outputs."""
    yield from (WORDS, POSITIONS, TOKEN_TYPES)
    blocks = [layer_name(layer, part) for layer in range(shape.layers) for part in (*_LINEARS, *_NORMS)]
    for stem in (EMBEDDING_NORM, *blocks, *([HEAD_DENSE] if dense else []), HEAD_OUT):
        yield f"{stem}.weight"
        yield f"{stem}.bias"


def storage_kind(name: str, quantization: Kind) -> Kind:
    """How a tensor is stored: words at 8 bits, the trunk's linear layers as the recipe says, all others as they are."""
    if name == WORDS:
        return "q8_0"
    is_linear = name.startswith("encoder.") and name.endswith(tuple(f".{part}.weight" for part in _LINEARS))
    return quantization if is_linear else "f32"


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor, of llama.cpp's architecture bert (gguf-py constants.py)."""
    stem, _, part = name.rpartition(".")
    if stem in _GGUF_TOP:
        return f"{_GGUF_TOP[stem]}.{part}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_GGUF_BLOCK[inner]}.{part}"


def to_grid(config: dict[str, Any], weights: Mapping[str, Floats], quantization: Kind) -> Grid:
    """Round an encoder's trained tensors to nearest.

    Raises:
        EdgestillError: tensors that are missing or that the config does not know.
    """
    shape = read_shape(config)
    names = list(tensor_names(shape, f"{HEAD_DENSE}.weight" in weights))
    if set(names) != set(weights):
        different = sorted(set(names) ^ set(weights))[:3]
        raise EdgestillError(f"the trained model lacks or adds {different}", "the base is not a plain BERT-type model")
    return Grid(config, {name: quantize(name, weights[name], storage_kind(name, quantization)) for name in names})


def without_unread_positions(grid: Grid) -> Grid:
    """The grid with zeros in the rows of positions that no token reads, RoBERTa's first ones; GGUF has no such rows."""
    positions = grid.tensors[POSITIONS].dequantize().copy()
    positions[: read_shape(grid.config).first_position] = 0
    return Grid(grid.config, {**grid.tensors, POSITIONS: GridTensor("f32", values=positions)})
