"""A GGUF file as a Hugging Face folder: weights dequantized, tokenizer.json built from the file's own metadata.

Only Llama-type models with a byte-level BPE tokenizer of a known `tokenizer.ggml.pre`; everything else is refused by
name. The derived tokenizer is what `tests/distill/test_base.py` proves equal to llama.cpp's token ids.
"""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

LAYOUT_VERSION = 1  # part of the cache key: raise it when the files below change
CONTROL, USER_DEFINED = 3, 4  # llama_token_type of the GGUF specification
SUPPORTED_PRE = ("smollm",)


@dataclasses.dataclass(frozen=True)
class Converted:
    """What `convert` knows about the weights it wrote."""

    weights_sha256: str
    weights_note: str
    license: str | None


def convert(source: Path, folder: Path) -> Converted:
    """Write config.json, generation_config.json, model.safetensors (float32) and tokenizer files for a GGUF file.

    Args:
        source: GGUF v3 file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
        folder: made if missing; whole only when the caller has written its manifest.

    Raises:
        EdgestillError: not a GGUF file, an architecture or tokenizer that is not supported, or a full disk.
    """
    import gguf
    from safetensors import SafetensorError

    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, OSError) as error:
        raise EdgestillError(f"{source} is not a GGUF file that can be read: {error}") from None
    values = {name: field.contents() for name, field in reader.fields.items()}
    architecture, pre = values.get("general.architecture"), values.get("tokenizer.ggml.pre")
    if architecture != "llama" or pre not in SUPPORTED_PRE:
        raise EdgestillError(
            f"{source.name} is a {architecture!r} with tokenizer {pre!r}, wanted 'llama' with one of {SUPPORTED_PRE}",
            "name a Hugging Face folder of that model instead",
        )
    tied = "output.weight" not in {tensor.name for tensor in reader.tensors}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sha256 = _write_weights(reader, values, folder / "model.safetensors")
        _write_json(folder / "config.json", _config(values, tied))
        _write_json(folder / "generation_config.json", _generation_config(values))
        _write_tokenizer(values, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise manifest.disk_error(folder, error) from error
    kinds = Counter(gguf.GGMLQuantizationType(t.tensor_type).name for t in reader.tensors if len(t.shape) > 1)
    note = "dequantized from GGUF " + ", ".join(f"{kind} ({count} matrices)" for kind, count in kinds.most_common())
    return Converted(sha256, note, values.get("general.license"))


def _write_weights(reader: Any, values: dict[str, Any], path: Path) -> str:
    import gguf
    from safetensors.numpy import save_file

    heads = {"q_proj": values["llama.attention.head_count"], "k_proj": values["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        name = _hf_name(tensor.name)
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        kind = name.split(".")[-2]
        if kind in heads:
            weight = _unpermute(weight, heads[kind])
        tensors[name] = np.ascontiguousarray(weight)
    save_file(tensors, path, metadata={"format": "pt"})
    return manifest.sha256_file(path)


def _unpermute(weight: Any, heads: int) -> Any:
    """Undo the row order that GGUF uses for rope of adjacent pairs: (heads, D/2, 2) back to (heads, 2, D/2)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    prefix, layer, kind, suffix = [*name.split("."), "", "", ""][:4]
    if prefix != "blk" or kind not in _BLOCK_NAMES:
        raise EdgestillError(f"the GGUF file has a tensor {name!r} that a Llama-type model does not have")
    return f"model.layers.{layer}.{_BLOCK_NAMES[kind]}.{suffix}"


def _config(values: dict[str, Any], tied: bool) -> dict[str, Any]:
    heads, width = values["llama.attention.head_count"], values["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
        "head_dim": width // heads,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": values["llama.feed_forward_length"],
        "max_position_embeddings": values["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": values["llama.block_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "rms_norm_eps": float(f"{values['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": values["llama.rope.freq_base"],
        "rope_parameters": {"rope_type": "default", "rope_theta": values["llama.rope.freq_base"]},
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
    }


def _generation_config(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
    }


_SPECIAL_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}


def _write_tokenizer(values: dict[str, Any], folder: Path) -> None:
    """tokenizer.json with `smollm`'s rule: every digit on its own, then GPT-2's byte-level split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == USER_DEFINED]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(values.get("tokenizer.ggml.add_bos_token", False)),
        **{name: tokens[values[key]] for name, key in _SPECIAL_TOKENS.items() if key in values},
        "clean_up_tokenization_spaces": False,
        "model_max_length": values["llama.context_length"],
    }
    template = values.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template  # transformers.js reads it here, transformers in the file below
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
