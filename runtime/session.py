"""One model in memory that answers token ids: what every engine must do, and the reuse of a shared prefix.

Does not know prompts, labels or text; `decode` builds on this and nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

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
        self._pinned: list[int] = []
        self._pinned_is_held = False

    def logits(self, ids: Sequence[int]) -> Logits:
        """Logits of the token after `ids`, shape (V,) float32; of an encoder's L outputs, (L,).

        Raises:
            EdgestillError: no ids, or more than `max_tokens`.
        """
        self._check(ids)
        kept, pinned_is_held = self._kept(ids)
        result = self._continue(kept, list(ids[kept:]))
        self._held, self._pinned_is_held = list(ids), pinned_is_held
        return result

    def pin(self, prefix: Sequence[int]) -> None:
        """Keep the state of `prefix` from request to request: `forget` goes back to it and no further.

        A text that begins with it is always computed in the same two pieces, so its logits are the same every time.
        """
        self._pinned = list(prefix) if self.reuses_prefix else []
        self._held, self._pinned_is_held = [], False

    def _kept(self, ids: Sequence[int]) -> tuple[int, bool]:
        """How many first tokens of `ids` are held, and whether the pinned prefix is, computed as a piece of its own."""
        held, pinned_was_held = self._held, self._pinned_is_held
        self._held, self._pinned_is_held = [], False  # when the engine fails, its state is not trusted again
        shared = min(_common_prefix(held, ids), len(ids) - 1) if self.reuses_prefix else 0
        pinned = len(self._pinned)
        if shared >= pinned:
            return shared, pinned_was_held
        if len(ids) == pinned or list(ids[:pinned]) != self._pinned:
            return (0 if pinned_was_held else shared), False  # a first text is one piece, whatever it shares with it
        self._continue(0, self._pinned)
        return pinned, True

    def logits_many(self, rows: Sequence[Sequence[int]]) -> Iterator[Logits]:
        """`logits` of B rows, each afresh and in order: (V,) float32 each; of an encoder's L outputs, (L,).

        Up to the kernels' rounding these are the numbers of B single requests. What is not taken may not be computed;
        the session belongs to the iterator until it is exhausted or dropped.

        Raises:
            EdgestillError: at once, no rows, or a row that `logits` refuses; then none is computed.
        """
        if not rows:
            raise EdgestillError("no rows to answer", "pass at least one")
        for ids in rows:
            self._check(ids)
        return self._continue_many(rows)

    def _continue_many(self, rows: Sequence[Sequence[int]]) -> Iterator[Logits]:
        """One row after the other; an engine for which it pays computes them together."""
        for ids in rows:
            self.forget()
            yield self.logits(ids)

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise EdgestillError("the prompt has no tokens", "pass at least one word")
        if len(ids) > self.max_tokens:
            raise EdgestillError(
                f"{len(ids)} tokens, but the session holds at most {self.max_tokens}",
                "shorten it or load with max_tokens=",
            )

    def forget(self) -> None:
        """Start the next call afresh, but for a pinned prefix.

        int8 kernels round a text computed in two pieces a little differently, so a request that wants the same answer
        every time begins here.
        """
        self._held = list(self._pinned) if self._pinned_is_held else []

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
