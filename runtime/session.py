"""One model in memory that answers token ids: what every engine must do, and the reuse of a shared prefix.

Does not know prompts, labels or text; `decode` builds on this and nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime.errors import EdgestillError

Logits = NDArray[np.float32]


class Session(ABC):
    """Next-token logits after any sequence of token ids, with the key/value state of the last call kept.

    Two calls that share a prefix compute it once: the constant part of a prompt costs nothing the second time, and a
    label trie pays only for its branches. Not thread-safe; `Student` holds the lock.
    """

    reuses_prefix = True  # False where every token sees those after it, so that no state outlives the call

    def __init__(self, max_tokens: int) -> None:
        """`max_tokens` is the longest sequence the session accepts."""
        self.max_tokens = max_tokens
        self._held: list[int] = []

    def logits(self, ids: Sequence[int]) -> Logits:
        """Logits of the token after `ids`, shape (V,) float32; of an encoder's L outputs, (L,).

        Raises:
            EdgestillError: no ids, or more than `max_tokens`.
        """
        if not ids:
            raise EdgestillError("the prompt has no tokens", "pass at least one word")
        if len(ids) > self.max_tokens:
            raise EdgestillError(
                f"{len(ids)} tokens, but the session holds at most {self.max_tokens}",
                "shorten it or load with max_tokens=",
            )
        shared = min(_common_prefix(self._held, ids), len(ids) - 1) if self.reuses_prefix else 0
        self._held = []  # when the engine fails below, its state is not trusted again
        result = self._continue(shared, list(ids[shared:]))
        self._held = list(ids)
        return result

    def forget(self) -> None:
        """Start the next call afresh.

        int8 kernels round a text computed in two pieces a little differently, so a request that wants the same answer
        every time begins here.
        """
        self._held = []

    @abstractmethod
    def _continue(self, kept: int, ids: list[int]) -> Logits:
        """Keep the state of the first `kept` tokens, forget the rest, append `ids`; logits after the last, (V,)."""


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
