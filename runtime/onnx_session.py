"""The ONNX engine: onnxruntime on the CPU, decoders with explicit key/value tensors. Only onnxruntime and numpy."""

from pathlib import Path
from typing import Any

import numpy as np

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.session import Logits, Session

# Prefill goes in pieces: the logits of a whole 1,000-token prompt alone would take 197 MB at a vocabulary of 49,152.
PREFILL_CHUNK_TOKENS = 64


class OnnxSession(Session):
    """A decoder graph with the input and output names of onnxruntime-genai's builder.

    Inputs: input_ids (B, T), attention_mask (B, past + T), past_key_values.N.key|value (B, H, past, D).
    Outputs: logits (B, T, V), present.N.key|value (B, H, past + T, D). Here B is 1.
    """

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        """Open the graph at `path` with `threads` intra-op threads.

        Raises:
            EdgestillError: the file is not a graph that onnxruntime can open.
        """
        super().__init__(max_tokens)
        self._graph = _open(path, threads)
        pasts = [i for i in self._graph.get_inputs() if i.name.startswith("past_key_values.")]
        self._past_names = [i.name for i in pasts]
        self._output_names = ["logits", *(n.replace("past_key_values", "present") for n in self._past_names)]
        self._past = [np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in pasts]

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        past = [np.ascontiguousarray(p[:, :, :kept]) if p.shape[2] != kept else p for p in self._past]
        logits: Any = None
        for start in range(0, len(ids), PREFILL_CHUNK_TOKENS):
            chunk = ids[start : start + PREFILL_CHUNK_TOKENS]
            total = kept + start + len(chunk)
            feeds = {
                "input_ids": np.array([chunk], np.int64),
                "attention_mask": np.ones((1, total), np.int64),
                **dict(zip(self._past_names, past, strict=True)),
            }
            logits, *past = self._graph.run(self._output_names, feeds)
        self._past = past
        return np.asarray(logits[0, -1], np.float32)


class OnnxEncoderSession(Session):
    """A graph that only labels, an encoder's or a cut decoder's: the whole text goes in, L outputs come out.

    Nothing is kept from call to call.

    Inputs: input_ids, attention_mask (B, T). Output: logits (B, L). Here B is 1, so nothing is padded.
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
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        return np.asarray(self._graph.run(["logits"], feeds)[0][0], np.float32)


def _open(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise EdgestillError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0]}") from None
