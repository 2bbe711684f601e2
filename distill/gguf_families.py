"""One table a family of GGUF files that can be read: what its tensors are called and what its config.json says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_SHARED = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_WINDOW_PATTERN = 6  # every sixth layer sees everything; llama.cpp assumes it where the file does not say
GEMMA_LOCAL_THETA = 10_000.0  # likewise


@dataclass(frozen=True)
class GgufFamily:
    """How a file of one general.architecture is read.

    Attributes:
        block: GGUF's names of one layer's tensors, with Hugging Face's.
        config: what config.json holds beside `_dimensions`, from the file's values without their prefix.
        adjacent_rope: query and key rows are stored in pairs of neighbours.
        norm_offset: added to the weights of norms in the file and not in config.json's model.
    """

    block: Mapping[str, str]
    config: Callable[[dict[str, Any]], dict[str, Any]]
    adjacent_rope: bool = False
    norm_offset: float = 0.0


def model_config(architecture: str, values: dict[str, Any], vocabulary: int, tied: bool) -> dict[str, Any]:
    """config.json without the ids of special tokens, from the metadata of a file of a known family."""
    prefix = f"{architecture}."
    own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    shared = {
        "attention_bias": False,
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "max_position_embeddings": own["context_length"],
        "num_attention_heads": own["attention.head_count"],
        "num_hidden_layers": own["block_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        "rms_norm_eps": float(f"{own['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": own["rope.freq_base"],
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
    }
    return {**shared, **FAMILIES[architecture].config(own)}


def _llama(own: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": own["embedding_length"] // own["attention.head_count"],
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": own["rope.freq_base"]},
    }


def _gemma3(own: dict[str, Any]) -> dict[str, Any]:
    windowed = own.get("attention.sliding_window_pattern")
    if not isinstance(windowed, list):
        every = windowed or GEMMA_WINDOW_PATTERN
        windowed = [(layer + 1) % every != 0 for layer in range(own["block_count"])]
    local = own.get("rope.freq_base_swa", GEMMA_LOCAL_THETA)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": own["attention.key_length"],
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention" if yes else "full_attention" for yes in windowed],
        "query_pre_attn_scalar": own["attention.key_length"],
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": own["rope.freq_base"]},
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "sliding_window": own["attention.sliding_window"],
    }


FAMILIES = {
    "llama": GgufFamily({**_SHARED, "ffn_norm": "post_attention_layernorm"}, _llama, adjacent_rope=True),
    "gemma3": GgufFamily(
        {
            **_SHARED,
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        _gemma3,
        norm_offset=1.0,
    ),
}
