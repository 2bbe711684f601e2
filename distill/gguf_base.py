"""A GGUF file as a Hugging Face folder: weights dequantized, tokenizer.json built from the file's own metadata.

Only the families of `gguf_families` with the tokenizers of `gguf_tokenizer`; everything else is refused by name.
"""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.distill.gguf_families import FAMILIES, TOP, GgufFamily, model_config
from edgestill.distill.gguf_tokenizer import KINDS, kind_of, write_tokenizer
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

LAYOUT_VERSION = 1  # part of the cache key: raise it when the files below change


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
    family = _family(values, source)
    tied = "output.weight" not in {tensor.name for tensor in reader.tensors}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sha256 = _write_weights(reader, family, values, folder / "model.safetensors")
        vocabulary = len(values["tokenizer.ggml.tokens"])
        config = model_config(values["general.architecture"], values, vocabulary, tied)
        _write_json(folder / "config.json", {**config, **_special_ids(values)})
        _write_json(folder / "generation_config.json", _special_ids(values))
        write_tokenizer(values, config["max_position_embeddings"], folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise manifest.disk_error(folder, error) from error
    kinds = Counter(gguf.GGMLQuantizationType(t.tensor_type).name for t in reader.tensors if len(t.shape) > 1)
    note = "dequantized from GGUF " + ", ".join(f"{kind} ({count} matrices)" for kind, count in kinds.most_common())
    return Converted(sha256, note, values.get("general.license"))


def _family(values: dict[str, Any], source: Path) -> GgufFamily:
    architecture, tokenizer = str(values.get("general.architecture")), kind_of(values)
    if architecture not in FAMILIES or tokenizer not in KINDS:
        raise EdgestillError(
            f"{source.name} is a {architecture!r} with tokenizer {'/'.join(tokenizer)!r}, wanted one of "
            f"{', '.join(FAMILIES)} with one of {', '.join(map('/'.join, KINDS))}",
            "name a Hugging Face folder of that model instead",
        )
    return FAMILIES[architecture]


def _write_weights(reader: Any, family: GgufFamily, values: dict[str, Any], path: Path) -> str:
    import gguf
    from safetensors.numpy import save_file

    architecture = values["general.architecture"]
    heads = {"q_proj": values[f"{architecture}.attention.head_count"]}
    heads["k_proj"] = values[f"{architecture}.attention.head_count_kv"]
    tensors = {}
    for tensor in reader.tensors:
        name = _hf_name(tensor.name, family)
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        weight = weight.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        kind = name.split(".")[-2]
        if family.adjacent_rope and kind in heads:
            weight = _unpermute(weight, heads[kind])
        if family.norm_offset and name.endswith("norm.weight"):
            weight = weight - np.float32(family.norm_offset)
        tensors[name] = np.ascontiguousarray(weight)
    save_file(tensors, path, metadata={"format": "pt"})
    return manifest.sha256_file(path)


def _unpermute(weight: Any, heads: int) -> Any:
    """Undo the row order that GGUF uses for rope of adjacent pairs: (heads, D/2, 2) back to (heads, 2, D/2)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _hf_name(name: str, family: GgufFamily) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in TOP:
        return TOP[name]
    prefix, layer, kind, suffix = [*name.split("."), "", "", ""][:4]
    if prefix != "blk" or kind not in family.block or suffix != "weight":
        raise EdgestillError(f"the GGUF file has a tensor {name!r} that a model of its family does not have")
    return f"model.layers.{layer}.{family.block[kind]}.{suffix}"


def _special_ids(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
