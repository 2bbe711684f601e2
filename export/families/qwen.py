"""Qwen2 and Qwen2.5: biases on query, key and value. Qwen3: none, and every query and key head is normed."""

from edgestill.export.families.family import ATTENTION, HEAD_NORMS, MLP, NORMS, Family, same_layers

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    gguf="qwen2",
    genai="qwen2",
    block={**NORMS, **ATTENTION, **MLP},
    biased=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    wanted={"hidden_act": ("silu",), "use_sliding_window": (False, None)},
    layers=same_layers,
)
QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    gguf="qwen3",
    genai="qwen3",
    block={**NORMS, **ATTENTION, **HEAD_NORMS, **MLP},
    wanted={"hidden_act": ("silu",), "attention_bias": (False, None), "use_sliding_window": (False, None)},
    defaults={"head_dim": 128},
    layers=same_layers,
)
