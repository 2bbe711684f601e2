"""One table a family: names of tensors here and in GGUF, and what each back end must know. Llama-type models so far."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.export.grid import Kind


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder: L layers, H query and G key/value heads of size D, widths, vocabulary V."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    inner: int
    vocabulary: int
    context: int
    rope_theta: float
    norm_epsilon: float
    tied: bool


SUPPORTED = ("LlamaForCausalLM",)

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
_GGUF_TOP = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
_GGUF_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def read_shape(config: dict[str, Any]) -> Shape:
    """Dimensions from a config.json that `plan.check_base` has let pass."""
    heads, width = config["num_attention_heads"], config["hidden_size"]
    rope = config.get("rope_parameters") or {}
    return Shape(
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or width // heads,
        width=width,
        inner=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        norm_epsilon=float(config["rms_norm_eps"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def layer_name(layer: int, part: str) -> str:
    """Hugging Face name of one block tensor, such as `self_attn.q_proj` of layer 3."""
    return f"model.layers.{layer}.{part}.weight"


def tensor_names(shape: Shape) -> Iterator[str]:
    """Every tensor of the model by its Hugging Face name, in a fixed order; a tied head has none."""
    yield EMBEDDING
    for layer in range(shape.layers):
        for part in _GGUF_BLOCK:
            yield layer_name(layer, part)
    yield FINAL_NORM
    if not shape.tied:
        yield HEAD


def storage_kind(name: str, quantization: Kind) -> Kind:
    """How a tensor is stored: norms as they are, embedding and head at 8 bits, linear layers as the recipe says."""
    if "norm" in name:
        return "f32"
    return "q8_0" if name in (EMBEDDING, HEAD) else quantization


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor (llama.cpp, gguf-py constants.py)."""
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_GGUF_BLOCK[part]}.weight"


def gguf_row_order(name: str, shape: Shape) -> NDArray[np.int64] | None:
    """Row order in the GGUF file: query and key rows pair up neighbours for rope; None when rows stay as they are."""
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return None
    rows = np.arange(heads * shape.head_size)
    return rows.reshape(heads, 2, shape.head_size // 2).swapaxes(1, 2).reshape(-1)
