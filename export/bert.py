"""The table of the BERT types (BERT, RoBERTa, XLM-RoBERTa): dimensions, names of tensors, how each is stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgestill.export.grid import Kind

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
_DEFAULT_PAD_TOKEN_ID = 1  # what transformers takes for a RoBERTa type whose config.json names none


@dataclass(frozen=True)
class BertShape:
    """The dimensions of an encoder: L layers, H heads, width, vocabulary V; `context` is its longest input in tokens.

    `first_position` is the row of the position table for the first token: RoBERTa's types count from the padding id on.
    """

    layers: int
    heads: int
    width: int
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
