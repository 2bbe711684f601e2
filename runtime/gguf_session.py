"""The GGUF engine: llama.cpp through llama-cpp-python. Raw logits of the last position; no sampling of its own."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.runtime.errors import EdgestillError, missing_package
from edgestill.runtime.session import Logits, Session

INSTALL_COMMAND = "pip install 'edgestill[gguf]'   (needs a C++ compiler; takes about 5 minutes)"
BATCH_TOKENS = 512


class GgufSession(Session):
    """A GGUF file in a llama.cpp context of `max_tokens` tokens."""

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        """Open the file at `path` with `threads` threads.

        Raises:
            EdgestillError: llama-cpp-python is not installed, or llama.cpp cannot read the file.
        """
        super().__init__(max_tokens)
        try:
            import llama_cpp
        except ImportError:
            raise missing_package("llama-cpp-python", INSTALL_COMMAND) from None
        self._api: Any = llama_cpp
        try:
            self.llama = llama_cpp.Llama(
                str(path),
                n_ctx=max_tokens,
                n_batch=min(BATCH_TOKENS, max_tokens),
                n_threads=threads,
                n_threads_batch=threads,
                verbose=False,
            )
        except (ValueError, OSError) as error:
            raise EdgestillError(f"llama.cpp cannot open {path}: {error}") from None

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        self.llama.n_tokens = kept  # eval() drops the state from here on
        self.llama.eval(ids)
        row = self._api.llama_get_logits_ith(self.llama.ctx, -1)
        buffer = ctypes.cast(row, ctypes.POINTER(ctypes.c_float * self.llama.n_vocab())).contents
        return np.array(buffer, np.float32)  # a copy: the next call overwrites the buffer

    def close(self) -> None:
        """Free the context and the mapped file."""
        self.llama.close()
