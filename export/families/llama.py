"""Llama 1 to 3.2 and its kin (SmolLM, SmolLM2, TinyLlama). Later ones stretch their rope."""

from edgestill.export.families.family import ATTENTION, MLP, NORMS, Family, same_layers

LLAMA = Family(
    architecture="LlamaForCausalLM",
    gguf="llama",
    genai="llama",
    block={**NORMS, **ATTENTION, **MLP},
    wanted={"hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None)},
    layers=same_layers,
    ropes=("default", "llama3"),
    adjacent_rope=True,
)
