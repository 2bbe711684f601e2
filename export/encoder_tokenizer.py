"""An encoder's tokenizer.json as GGUF metadata, for programs other than ours: the device reads tokenizer.json itself.

Keys and conventions are those of llama.cpp's converter (convert_hf_to_gguf, BERT types). A tokenizer that llama.cpp
has no rule for is left out by name ("no_vocab"): such a file takes token ids only.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgestill.export.tokenizer_writer import CONTROL, NORMAL, UNUSED, USER_DEFINED, find_pre, read_tokenizer
from edgestill.export.tokenizer_writer import add_tokenizer as add_bpe_tokenizer
from edgestill.runtime.errors import GateFailed
from edgestill.runtime.task import Task

NO_VOCABULARY = "no_vocab"
UNKNOWN = 2  # llama_token_type of the GGUF specification
WORD_START = (
    "\u2581"  # llama.cpp's "phantom space": marks the piece that begins a word, where WordPiece marks the others
)
_UNUSED_SCORE = -10000.0


def add_tokenizer(writer: Any, folder: Path, config: dict[str, Any], task: Task, probes: Sequence[str]) -> str:
    """Write the tokenizer's keys; returns llama.cpp's name for its kind, "no_vocab" where there is none that fits.

    Args:
        writer: of a file of architecture bert.
        folder: with tokenizer.json.
        config: the model's config.json.
        task: names the ids before and after a text.
        probes: texts by which a splitting rule of byte-level BPE is found.
    """
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    kind, normalizers = data["model"].get("type"), _normalizers(data.get("normalizer"))
    writer.add_token_type_count(config.get("type_vocab_size", 1))
    if kind == "WordPiece" and "BertNormalizer" in normalizers:
        return _add_wordpiece(writer, data, normalizers["BertNormalizer"], config, task)
    if kind == "Unigram" and "Precompiled" in normalizers:  # without it llama.cpp does not split at line ends
        return _add_unigram(writer, data, normalizers["Precompiled"], config, task)
    if kind == "BPE":
        return _add_bpe(writer, folder, config, task, probes)
    return _leave_out(writer, config)


def _normalizers(part: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The normalizers of a tokenizer.json by their type, also those that stand in a sequence."""
    parts = [] if part is None else part.get("normalizers", [part])
    return {part["type"]: part for part in parts}


def _add_wordpiece(
    writer: Any, data: dict[str, Any], normalizer: dict[str, Any], config: dict[str, Any], task: Task
) -> str:
    tokens, kinds = _empty(config["vocab_size"])
    prefix = data["model"]["continuing_subword_prefix"]
    for token, index in data["model"]["vocab"].items():
        tokens[index] = token.removeprefix(prefix) if token.startswith(prefix) else WORD_START + token
        kinds[index] = NORMAL
    _mark_added(data, tokens, kinds)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    accents = normalizer["strip_accents"]
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", normalizer["lowercase"])
    writer.add_bool("tokenizer.ggml.normalizer.strip_accents", normalizer["lowercase"] if accents is None else accents)
    writer.add_unk_token_id(tokens.index(data["model"]["unk_token"]))
    _add_special(writer, task)  # llama.cpp puts the last id, [SEP], after a text without being told
    return "bert"


def _add_unigram(
    writer: Any, data: dict[str, Any], normalizer: dict[str, Any], config: dict[str, Any], task: Task
) -> str:
    (tokens, kinds), scores = _empty(config["vocab_size"]), [_UNUSED_SCORE] * config["vocab_size"]
    for index, (token, score) in enumerate(data["model"]["vocab"]):
        tokens[index], kinds[index], scores[index] = token, NORMAL, score
    _mark_added(data, tokens, kinds)
    unknown = data["model"]["unk_id"]
    kinds[unknown] = UNKNOWN
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(base64.b64decode(normalizer["precompiled_charsmap"]))
    writer.add_unk_token_id(unknown)
    _add_special(writer, task)
    writer.add_eos_token_id(task.eos_token_id)
    writer.add_add_eos_token(True)
    return "t5"


def _add_bpe(writer: Any, folder: Path, config: dict[str, Any], task: Task, probes: Sequence[str]) -> str:
    try:
        pre = find_pre(folder, config, task, probes)
    except GateFailed:
        return _leave_out(writer, config)
    add_bpe_tokenizer(writer, read_tokenizer(folder, config, task, pre))
    writer.add_add_eos_token(True)
    return "gpt2"


def _leave_out(writer: Any, config: dict[str, Any]) -> str:
    writer.add_tokenizer_model(NO_VOCABULARY)
    writer.add_vocab_size(config["vocab_size"])
    return NO_VOCABULARY


def _empty(size: int) -> tuple[list[str], list[int]]:
    """Names and kinds of V tokens that the vocabulary does not hold, yet the table of words has rows for."""
    return [f"[PAD{i}]" for i in range(size)], [UNUSED] * size


def _mark_added(data: dict[str, Any], tokens: list[str], kinds: list[int]) -> None:
    for added in data.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED


def _add_special(writer: Any, task: Task) -> None:
    """The ids around a text as in training."""
    if task.bos_token_id is not None:
        writer.add_bos_token_id(task.bos_token_id)
    writer.add_add_bos_token(task.bos_token_id is not None)
    writer.add_sep_token_id(task.eos_token_id)
