"""The base's tokenizer.json as GGUF metadata, with the pre-tokenizer name found by trial against llama.cpp itself."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgestill.runtime.errors import EdgestillError, GateFailed, missing_package
from edgestill.runtime.gguf_session import INSTALL_COMMAND
from edgestill.runtime.task import Task, load_tokenizer

# llama_token_type of the GGUF specification
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
# Names llama.cpp knows for byte-level BPE, in the order they are tried.
PRE_CANDIDATES = ("smollm", "llama-bpe", "qwen2", "gpt-2", "smaug-bpe", "starcoder", "refact", "command-r", "olmo")
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
BLANK = "\u2581"  # how SentencePiece writes a blank
NEVER_MERGED = -1e6  # a score below that of every merge


@dataclass(frozen=True)
class GgufTokenizer:
    """A BPE vocabulary of V tokens in GGUF's terms; `pre` names llama.cpp's splitting rule.

    Byte-level pieces have merges; SentencePiece's, with bytes for what is in no piece, have one score a token instead.
    """

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    bos_token_id: int | None
    add_bos: bool
    eos_token_id: int
    pad_token_id: int | None
    chat_template: str | None
    scores: tuple[float, ...] = ()

    @property
    def model(self) -> str:
        """tokenizer.ggml.model."""
        return "llama" if self.scores else "gpt2"


def read_tokenizer(folder: Path, config: dict[str, Any], task: Task, pre: str) -> GgufTokenizer:
    """Read tokenizer.json of `folder` for a model with `config`.

    Raises:
        EdgestillError: not a BPE tokenizer.
    """
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = data["model"]
    if model.get("type") != "BPE":
        raise EdgestillError(
            f"the base's tokenizer is {model.get('type')}, supported for GGUF: BPE", "set export.artifacts: [onnx]"
        )
    pieces = bool(model.get("byte_fallback"))
    size = config["vocab_size"]
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, index in model["vocab"].items():
        tokens[index], kinds[index] = token, BYTE if pieces and BYTE_PIECE.fullmatch(token) else NORMAL
    for added in data.get("added_tokens", []):
        blanks = pieces and not added["special"]  # llama.cpp looks for these in the text as it is written
        tokens[added["id"]] = added["content"].replace(BLANK, " ") if blanks else added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return GgufTokenizer(
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        merges=() if pieces else tuple(map(" ".join, merges)),
        scores=_scores(merges, model["vocab"], size) if pieces else (),
        pre=pre,
        bos_token_id=task.bos_token_id if task.bos_token_id is not None else config.get("bos_token_id"),
        add_bos=task.bos_token_id is not None,
        eos_token_id=task.eos_token_id,
        pad_token_id=config.get("pad_token_id"),
        chat_template=_chat_template(folder),
    )


def _chat_template(folder: Path) -> str | None:
    """The template of its own file, or the one that tokenizer_config.json holds in older folders."""
    own, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.exists():
        return own.read_text(encoding="utf-8")
    stored = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.exists() else None
    return stored if isinstance(stored, str) else None


def _scores(merges: Sequence[tuple[str, ...]], vocabulary: Mapping[str, int], size: int) -> tuple[float, ...]:
    """(V,) SentencePiece's scores: what is merged earlier stands higher."""
    scores = [NEVER_MERGED] * size
    for place, made in enumerate(dict.fromkeys(map("".join, merges))):
        scores[vocabulary[made]] = float(-place)
    return tuple(scores)


def add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    """Write the tokenizer's keys; other programs add a beginning-of-sequence id where training did."""
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.kinds))
    if tokenizer.scores:
        writer.add_token_scores(list(tokenizer.scores))
    else:
        writer.add_token_merges(list(tokenizer.merges))
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def find_pre(folder: Path, config: dict[str, Any], task: Task, probes: Sequence[str]) -> str:
    """The first splitting rule under which llama.cpp gives the base's own token ids on every probe.

    Byte-level pieces are tried with each of `PRE_CANDIDATES`; SentencePiece's are not split before they are merged.

    Raises:
        GateFailed: none does; the best candidate's first mismatch is in the message.
        EdgestillError: llama-cpp-python is not installed.
    """
    wanted = _ids(load_tokenizer(folder), probes)
    best: tuple[int, str, str] | None = None
    first = read_tokenizer(folder, config, task, PRE_CANDIDATES[0])
    for pre in ("default",) if first.scores else PRE_CANDIDATES:
        with _vocabulary(replace(first, pre=pre)) as path:
            wrong = _differing(path, wanted)
        if not wrong:
            return pre
        if best is None or len(wrong) < best[0]:
            best = (len(wrong), pre, wrong[0])
    assert best is not None
    raise GateFailed(
        f"no splitting rule of llama.cpp gives this tokenizer's ids; nearest is {best[1]} with {best[0]} of "
        f"{len(probes)} texts wrong, first {best[2]!r}",
        "set export.artifacts: [onnx]",
    )


def mismatches(path: Path, reference: Any, probes: Iterable[str]) -> list[str]:
    """Texts on which llama.cpp, reading the GGUF file at `path`, gives other token ids than `reference`."""
    return _differing(path, _ids(reference, probes))


def _ids(reference: Any, probes: Iterable[str]) -> list[tuple[str, list[int]]]:
    return [(text, reference.encode(text, add_special_tokens=False).ids) for text in probes]


def _differing(path: Path, wanted: Iterable[tuple[str, list[int]]]) -> list[str]:
    with _llama_tokenizer(path) as token_ids:
        return [text for text, ids in wanted if token_ids(text) != ids]


@contextmanager
def _llama_tokenizer(path: Path) -> Iterator[Callable[[str], list[int]]]:
    """llama.cpp's own token ids for a text, special tokens read as text; the vocabulary only, without a context."""
    try:
        import llama_cpp
    except ImportError:
        raise missing_package("llama-cpp-python", INSTALL_COMMAND) from None
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # else it prints the whole vocabulary's metadata
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise GateFailed(f"llama.cpp cannot read the vocabulary of {path}")
    vocabulary = llama_cpp.llama_model_get_vocab(model)

    def token_ids(text: str) -> list[int]:
        data = text.encode()
        room = (llama_cpp.llama_token * (4 * len(data) + 16))()  # normalisation can lengthen a text
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), room, len(room), False, False)
        return list(room[:count])

    try:
        yield token_ids
    finally:
        llama_cpp.llama_model_free(model)


@contextmanager
def _vocabulary(tokenizer: GgufTokenizer) -> Iterator[Path]:
    """A GGUF file with a vocabulary and no weights, gone afterwards."""
    import gguf

    handle, name = tempfile.mkstemp(suffix=".gguf")
    os.close(handle)
    path = Path(name)
    try:
        writer = gguf.GGUFWriter(path, "llama")
        add_tokenizer(writer, tokenizer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield path
    finally:
        path.unlink(missing_ok=True)
