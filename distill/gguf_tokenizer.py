"""tokenizer.json from a GGUF file's vocabulary. What it gives is llama.cpp's token ids; tests/distill prove it.

Two kinds are known: GPT-2's byte-level pieces with merges, and SentencePiece's, whose scores say what is merged first.
"""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama_token_type of the GGUF specification
BLANK = "\u2581"  # how SentencePiece writes a blank

_SPECIAL_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}


def kind_of(values: dict[str, Any]) -> tuple[str, str]:
    """The tokenizer's model and its rule for splitting, as `KINDS` has them."""
    model, rule = str(values.get("tokenizer.ggml.model")), str(values.get("tokenizer.ggml.pre", "default"))
    blank = model == "llama" and values.get("tokenizer.ggml.add_space_prefix", True)
    return model, rule + " and a blank in front" if blank else rule


def write_tokenizer(values: dict[str, Any], context_tokens: int, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template of a file whose `kind_of` is in `KINDS`."""
    from tokenizers import AddedToken, processors

    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    tokenizer = KINDS[kind_of(values)](values)
    special = [
        AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == CONTROL
    ]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == USER_DEFINED]
    )
    adds_bos = bool(values.get("tokenizer.ggml.add_bos_token", False))
    if adds_bos:
        bos = values["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        **{name: tokens[values[key]] for name, key in _SPECIAL_TOKENS.items() if key in values},
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
    }
    template = values.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template  # transformers.js reads it here, transformers in the file below
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _smollm(values: dict[str, Any]) -> Any:
    """`smollm`'s rule: every digit on its own, then GPT-2's byte-level split."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(values["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(values: dict[str, Any]) -> Any:
    """SentencePiece's pairs: of neighbours that make a piece, those with the highest score are merged first.

    What is in no piece becomes its UTF-8 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"]
    kinds = values["tokenizer.ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pieces = sorted(
        (i for i, kind in enumerate(kinds) if kind == NORMAL and len(tokens[i]) > 1), key=lambda i: -scores[i]
    )
    merges = list(chain.from_iterable(_splits(tokens[i], vocabulary) for i in pieces))
    unknown = tokens[values["tokenizer.ggml.unknown_token_id"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _splits(token: str, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others."""
    pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
    return [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]


KINDS: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {
    ("gpt2", "smollm"): _smollm,
    ("llama", "default"): _sentencepiece,
}
