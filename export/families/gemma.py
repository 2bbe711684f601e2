"""Gemma 3, text only: windows in five layers of six, norms on both sides of attention and MLP, 256-wide heads."""

from typing import Any

from edgestill.export.families.family import ATTENTION, HEAD_NORMS, MLP, Family, Layer, Rope

WINDOW_PATTERN = 6  # every sixth layer sees everything, where config.json does not say


def _layers(config: dict[str, Any]) -> tuple[Layer, ...]:
    said = config.get("rope_parameters") or {}
    full, sliding = said.get("full_attention") or said, said.get("sliding_attention") or {}
    everything = Layer(Rope(float(full.get("rope_theta") or config.get("rope_theta") or 1_000_000.0)))
    theta = float(sliding.get("rope_theta") or config.get("rope_local_base_freq") or 10_000.0)
    windowed = Layer(Rope(theta), int(config["sliding_window"]))
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or WINDOW_PATTERN
    kinds = config.get("layer_types") or [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(config["num_hidden_layers"])
    ]
    return tuple(windowed if kind == "sliding_attention" else everything for kind in kinds)


GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    gguf="gemma3",
    genai="gemma3_text",
    block={
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        **ATTENTION,
        **HEAD_NORMS,
        **MLP,
    },
    wanted={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False, None),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
        "head_dim": (256,),
        "query_pre_attn_scalar": (256,),  # llama.cpp divides scores by the square root of the head size
    },
    defaults={"head_dim": 256, "tie_word_embeddings": True},
    layers=_layers,
    norm_offset=1.0,
    scaled_embedding=True,
    activation="gelu_tanh",
    attention_norm="post_attention_layernorm",
    mlp_input_norm="pre_feedforward_layernorm",
    mlp_norm="post_feedforward_layernorm",
)
