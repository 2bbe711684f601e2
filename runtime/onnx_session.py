"""The ONNX engine: onnxruntime on the CPU, decoders with keys and values in place. Only onnxruntime and numpy."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.session import Logits, Session

# Prefill goes in pieces: the logits of a whole 1,000-token prompt alone would take 197 MB at a vocabulary of 49,152.
PREFILL_CHUNK_TOKENS = 64
STATE_STEP_TOKENS = 256  # keys and values grow by this much at a time
BATCH_TOKENS = 256  # of one batch of texts that are only labelled, padding counted


class OnnxSession(Session):
    """A decoder graph with the input and output names of onnxruntime-genai's builder.

    Inputs: input_ids (B, T), attention_mask (B, past + T), past_key_values.N.key|value (B, H, past, D).
    Outputs: logits (B, 1, V) of the last position, or (B, T, V) of all; present.N.key|value (B, H, past + T, D).
    Of one request past and present are one buffer (1, H, capacity, D), which GroupQueryAttention writes in place.
    """

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        """Open the graph at `path` with `threads` intra-op threads.

        Raises:
            EdgestillError: the file is not a graph that onnxruntime can open.
        """
        super().__init__(max_tokens)
        self._graph = _open(path, threads)
        self._past = {i.name: i for i in self._graph.get_inputs() if i.name.startswith("past_key_values.")}
        shape = next(o.shape for o in self._graph.get_outputs() if o.name == "logits")
        self._rows, self._vocabulary = (1 if shape[1] == 1 else PREFILL_CHUNK_TOKENS), int(shape[2])
        self._state: dict[str, NDArray[np.float32]] = {}
        self._capacity = 0  # tokens that the buffers of `_state` hold
        self._logits = np.empty(0, np.float32)
        self._binding = self._graph.io_binding()

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        self._make_room(kept, kept + len(ids))
        row = self._logits
        for start in range(0, len(ids), PREFILL_CHUNK_TOKENS):
            chunk = ids[start : start + PREFILL_CHUNK_TOKENS]
            self._binding.bind_cpu_input("input_ids", np.array([chunk], np.int64))
            self._binding.bind_cpu_input("attention_mask", np.ones((1, kept + start + len(chunk)), np.int64))
            row = self._bind_logits(len(chunk))
            self._graph.run_with_iobinding(self._binding)
        return row.copy()

    def _bind_logits(self, tokens: int) -> Logits:
        """Where the logits after the last of `tokens` will be, (V,), in a buffer that the next call writes again."""
        from onnxruntime import OrtValue

        rows = min(tokens, self._rows)
        if self._logits.size < rows * self._vocabulary:
            self._logits = np.empty(rows * self._vocabulary, np.float32)
        logits = self._logits[: rows * self._vocabulary].reshape(1, rows, self._vocabulary)
        self._binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(logits))
        return logits[0, -1]

    def _make_room(self, kept: int, tokens: int) -> None:
        """Buffers for `tokens` tokens with the first `kept` as they are, one tensor at a time."""
        from onnxruntime import OrtValue

        if tokens <= self._capacity:
            return
        capacity = min(self.max_tokens, -(-tokens // STATE_STEP_TOKENS) * STATE_STEP_TOKENS)
        self._capacity = 0  # until all buffers are there: memory may run out half way
        for name, past in self._past.items():
            larger = np.empty((1, past.shape[1], capacity, past.shape[3]), np.float32)
            if kept:
                larger[:, :, :kept] = self._state[name][:, :, :kept]
            self._state[name] = larger
            value = OrtValue.ortvalue_from_numpy(larger)
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        self._capacity = capacity


class OnnxEncoderSession(Session):
    """A graph that only labels, an encoder's or a cut decoder's: the whole text goes in, L outputs come out.

    Nothing is kept from call to call.

    Inputs: input_ids, attention_mask (B, T). Output: logits (B, L).
    """

    reuses_prefix = False

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        """Open the graph at `path` with `threads` intra-op threads.

        Raises:
            EdgestillError: the file is not a graph that onnxruntime can open.
        """
        super().__init__(max_tokens)
        self._graph = _open(path, threads)

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        assert kept == 0
        return self._answer_padded([ids])[0]

    def _continue_many(self, rows: Sequence[Sequence[int]]) -> Iterator[Logits]:
        return answered_together(rows, BATCH_TOKENS, self._answer_padded)

    def _answer_padded(self, rows: Sequence[Sequence[int]]) -> Logits:
        """B whole texts, (B, L)."""
        return np.asarray(self._graph.run(["logits"], padded(rows))[0], np.float32)


def answered_together(
    rows: Sequence[Sequence[int]], limit_tokens: int, answer: Callable[[Sequence[Sequence[int]]], Logits]
) -> Iterator[Logits]:
    """(L,) of each row in their order, all computed before the first.

    `answer` gets rows of about one length, `limit_tokens` with their padding.
    """
    waiting = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Logits] = {}
    while waiting:
        count = max(1, limit_tokens // len(rows[waiting[-1]]))
        together = waiting[-count:]
        del waiting[-count:]
        found.update(zip(together, answer([rows[i] for i in together]), strict=True))
    return (found[i] for i in range(len(rows)))


def padded(rows: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
    """input_ids and attention_mask (B, T) of B rows; padding is on the right."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def _open(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        graph = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise EdgestillError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0]}") from None
    _give_memory_back()
    return graph


def _give_memory_back() -> None:
    """What loading freed goes back to the system: of SmolLM2-135M 46 of 260 MB, which glibc would keep."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # a C library without malloc_trim(3)
        ctypes.CDLL(None).malloc_trim(0)
