"""The base's tokenizer.json as GGUF metadata, with the pre-tokenizer name found by trial against llama.cpp itself."""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.runtime.errors import EdgestillError, GateFailed, missing_package
from edgestill.runtime.gguf_session import INSTALL_COMMAND
from edgestill.runtime.task import Task, load_tokenizer

# llama_token_type of the GGUF specification
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# Names llama.cpp knows for byte-level BPE, in the order they are tried.
PRE_CANDIDATES = ("smollm", "llama-bpe", "qwen2", "gpt-2", "smaug-bpe", "starcoder", "refact", "command-r", "olmo")


@dataclass(frozen=True)
class GgufTokenizer:
    """A byte-level BPE vocabulary of V tokens in GGUF's terms; `pre` names llama.cpp's splitting rule."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    bos_token_id: int | None
    add_bos: bool
    eos_token_id: int
    pad_token_id: int | None
    chat_template: str | None


def read_tokenizer(folder: Path, config: dict[str, Any], task: Task, pre: str) -> GgufTokenizer:
    """Read tokenizer.json of `folder` for a model with `config`.

    Raises:
        EdgestillError: not a byte-level BPE tokenizer.
    """
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = data["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise EdgestillError(
            f"the base's tokenizer is {model.get('type')}, supported for GGUF: byte-level BPE",
            "set export.artifacts: [onnx]",
        )
    size = config["vocab_size"]
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, index in model["vocab"].items():
        tokens[index], kinds[index] = token, NORMAL
    for added in data.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    template = folder / "chat_template.jinja"
    return GgufTokenizer(
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        merges=tuple(merges),
        pre=pre,
        bos_token_id=task.bos_token_id if task.bos_token_id is not None else config.get("bos_token_id"),
        add_bos=task.bos_token_id is not None,
        eos_token_id=task.eos_token_id,
        pad_token_id=config.get("pad_token_id"),
        chat_template=template.read_text(encoding="utf-8") if template.exists() else None,
    )


def add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    """Write the tokenizer's keys; other programs add a beginning-of-sequence id where training did."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.kinds))
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
    """The first of `PRE_CANDIDATES` under which llama.cpp gives the base's own token ids on every probe.

    Raises:
        GateFailed: none does; the best candidate's first mismatch is in the message.
        EdgestillError: llama-cpp-python is not installed.
    """
    reference = load_tokenizer(folder)
    best: tuple[int, str, str] | None = None
    for pre in PRE_CANDIDATES:
        with _vocabulary(read_tokenizer(folder, config, task, pre)) as path:
            wrong = mismatches(path, reference, probes)
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
    with _llama_tokenizer(path) as token_ids:
        return [text for text in probes if token_ids(text) != reference.encode(text, add_special_tokens=False).ids]


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
        room = (llama_cpp.llama_token * (len(data) + 1))()
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
