"""The GGUF engine: llama.cpp through llama-cpp-python. A decoder's raw logits of the last position, an encoder's head.

No sampling of its own.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime.errors import EdgestillError, missing_package
from edgestill.runtime.gguf_file import read_float32
from edgestill.runtime.session import Logits, Session

INSTALL_COMMAND = "pip install 'edgestill[gguf]'   (needs a C++ compiler; takes about 5 minutes)"
BATCH_TOKENS = 512
POOLING_KEY = "edgestill.pooling"  # metadata of an encoder's file: mean or cls
_NO_POOLING = 0  # LLAMA_POOLING_TYPE_NONE: the state of every token
_HEAD = ("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias")


class GgufSession(Session):
    """A GGUF file in a llama.cpp context of `max_tokens` tokens."""

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        """Open the file at `path` with `threads` threads.

        Raises:
            EdgestillError: llama-cpp-python is not installed, or llama.cpp cannot read the file.
        """
        super().__init__(max_tokens)
        self._api, self.llama = _open(path, threads, n_ctx=max_tokens, n_batch=min(BATCH_TOKENS, max_tokens))

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        self.llama.n_tokens = kept  # eval() drops the state from here on
        self.llama.eval(ids)
        row = self._api.llama_get_logits_ith(self.llama.ctx, -1)
        return _copied(row, (self.llama.n_vocab(),))

    def close(self) -> None:
        """Free the context and the mapped file."""
        self.llama.close()


class GgufEncoderSession(Session):
    """An encoder's GGUF file: llama.cpp gives the hidden states, pooling and head are computed here in float32.

    The head's tensors have llama.cpp's names: `cls` is a dense layer with tanh, `cls.output` gives the L outputs. With
    mean pooling there is no `cls` and the hidden states' mean goes to `cls.output`; with cls the first one goes through
    both.
    """

    reuses_prefix = False

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        """Open the file at `path` with `threads` threads.

        Raises:
            EdgestillError: llama-cpp-python is not installed, or the file is not one of ours or cannot be read.
        """
        super().__init__(max_tokens)
        limits = dict.fromkeys(("n_ctx", "n_batch", "n_ubatch"), max_tokens)  # every token sees every other: one batch
        self._api, self.llama = _open(path, threads, **limits, embedding=True, pooling_type=_NO_POOLING)
        self._pooling = self.llama.metadata.get(POOLING_KEY)
        self._head = read_float32(path, _HEAD)
        wanted = {"mean": _HEAD[2:], "cls": _HEAD}.get(self._pooling)
        if wanted is None or set(wanted) != set(self._head):
            raise EdgestillError(
                f"{path} has pooling {self._pooling} and the head {sorted(self._head)}", "type: edgestill export RECIPE"
            )

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        assert kept == 0
        pooled = self._hidden(ids)
        if self._pooling == "mean":
            pooled = pooled.mean(0)
        else:
            pooled = np.tanh(self._head["cls.weight"] @ pooled[0] + self._head["cls.bias"])
        return np.asarray(self._head["cls.output.weight"] @ pooled + self._head["cls.output.bias"], np.float32)

    def _hidden(self, ids: list[int]) -> NDArray[np.float32]:
        """Last hidden states of T tokens, (T, K)."""
        tokens, wanted = (self._api.llama_token * len(ids))(*ids), (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        batch = self._api.llama_batch_get_one(tokens, len(ids))
        batch.logits = wanted  # every token's state comes out
        status = self._api.llama_encode(self.llama.ctx, batch)
        if status:
            raise EdgestillError(f"llama.cpp cannot compute {len(ids)} tokens: status {status}")
        return _copied(self._api.llama_get_embeddings(self.llama.ctx), (len(ids), self.llama.n_embd()))

    def close(self) -> None:
        """Free the context and the mapped file."""
        self.llama.close()


def _open(path: Path, threads: int, **options: Any) -> tuple[Any, Any]:
    """(module llama_cpp, its Llama) of a file."""
    try:
        import llama_cpp
    except ImportError:
        raise missing_package("llama-cpp-python", INSTALL_COMMAND) from None
    try:
        llama = llama_cpp.Llama(str(path), n_threads=threads, n_threads_batch=threads, verbose=False, **options)
    except (ValueError, OSError) as error:
        raise EdgestillError(f"llama.cpp cannot open {path}: {error}") from None
    return llama_cpp, llama


def _copied(pointer: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Floats of llama.cpp's buffer; a copy, because the next call overwrites it."""
    return np.ctypeslib.as_array(pointer, shape).copy()
