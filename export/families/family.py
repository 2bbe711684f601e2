"""What tells one family of decoders from another, as data. Knows no file format beyond the names that formats give."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretched rope: long waves are `factor` times as long, short ones stay, those between are mixed."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class Rope:
    """Rotary positions (RoFormer, arXiv 2104.09864) of one kind of layer."""

    theta: float
    scaling: Llama3Scaling | None = None

    def frequencies(self, head_size: int) -> NDArray[np.float64]:
        """(D / 2,) radians a position."""
        plain = self.theta ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
        return plain / self.divisors(head_size)

    def divisors(self, head_size: int) -> NDArray[np.float64]:
        """(D / 2,) what the scaling divides each frequency by: 1 where it leaves it alone."""
        scaling = self.scaling
        if scaling is None:
            return np.ones(head_size // 2)
        plain = self.theta ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
        turns = scaling.original_context * plain / (2 * np.pi)  # within the context it was trained on
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return np.asarray(1 / ((1 - kept) / scaling.factor + kept))


@dataclass(frozen=True)
class Layer:
    """How one layer attends: to itself and the `window` - 1 tokens before it, to all of them where it is None."""

    rope: Rope
    window: int | None = None


@dataclass(frozen=True)
class Family:
    """One family of decoders.

    Attributes:
        architecture: in config.json.
        gguf: general.architecture.
        genai: model.type in onnxruntime-genai's genai_config.json.
        block: parts of one layer by their Hugging Face names, with GGUF's names, in the order of storage.
        biased: parts of `block` that have a bias.
        wanted: keys of config.json and the values that the back ends write; an absent key passes.
        defaults: what transformers takes for keys that config.json leaves out, where it differs from `read_shape`'s.
        ropes: rope types that are written.
        layers: how each layer attends, from config.json.
        adjacent_rope: llama.cpp rotates neighbours, so query and key rows are reordered in the GGUF file.
        norm_offset: norms multiply by this + their weight; both files hold the sum.
        scaled_embedding: embeddings are multiplied by the square root of the width.
        activation: of the gate.
        attention_norm: norm of what attention adds to the stream.
        mlp_input_norm: norm before the MLP.
        mlp_norm: norm of what the MLP adds to the stream.
    """

    architecture: str
    gguf: str
    genai: str
    block: Mapping[str, str]
    wanted: Mapping[str, tuple[Any, ...]]
    layers: Callable[[dict[str, Any]], tuple[Layer, ...]]
    biased: tuple[str, ...] = ()
    defaults: Mapping[str, Any] | None = None
    ropes: tuple[str, ...] = ("default",)
    adjacent_rope: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    attention_norm: str | None = None
    mlp_input_norm: str = "post_attention_layernorm"
    mlp_norm: str | None = None

    @property
    def head_norms(self) -> bool:
        """Whether every query and key head is normed before rope."""
        return "self_attn.q_norm" in self.block


def rope_settings(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What config.json says of rope, one a kind of layer; old and new transformers write it in different places."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [value for value in said.values() if isinstance(value, dict)]
    return nested or [said]


def rope_type(settings: dict[str, Any]) -> str:
    """Such as `default` or `llama3`."""
    return str(settings.get("rope_type", settings.get("type", "default")))


def same_layers(config: dict[str, Any]) -> tuple[Layer, ...]:
    """Every layer sees everything before it, with one rope."""
    (said,) = rope_settings(config)
    theta = float(said.get("rope_theta") or config.get("rope_theta") or 10000.0)
    scaling = None
    if rope_type(said) == "llama3":
        scaling = Llama3Scaling(
            factor=float(said["factor"]),
            low_freq_factor=float(said["low_freq_factor"]),
            high_freq_factor=float(said["high_freq_factor"]),
            original_context=int(said.get("original_max_position_embeddings") or config["max_position_embeddings"]),
        )
    return (Layer(Rope(theta, scaling)),) * int(config["num_hidden_layers"])
