"""Gate: the same weights without integer kernels, computed by both engines, give torch's logits.

The twin of a GGUF file holds the grid's values in float32 and its cache is float32; the twin of an ONNX file is the
same graph at accuracy level 0, where MatMulNBits multiplies floats. What is left is the order of sums, so that a wrong
graph, scale, rope or norm has nothing to hide behind. Twins lie in a folder that is gone afterwards.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.export import bert
from edgestill.export.build import Build
from edgestill.export.gates.gate import Gate, at_most
from edgestill.export.gates.reference import Reference, kl_nats
from edgestill.export.grid import Grid, GridTensor
from edgestill.runtime.bundle import ONNX_LABELS
from edgestill.runtime.device import usable_cores
from edgestill.runtime.gguf_session import BATCH_TOKENS, GgufEncoderSession, GgufSession, _open
from edgestill.runtime.session import Session
from edgestill.runtime.student import ENCODER_ENGINES, ENGINES
from edgestill.runtime.task import Task

TWIN_ROWS = 8
MAX_KL_NATS = 1e-4
MAX_RELATIVE_ERROR = 1e-3
# llama.cpp computes an encoder's GELU with tanh, out of a table of float16, where torch has erf: in float32, with
# everything else equal, that alone moves a BERT's hidden states by 0.7e-3 to 2.2e-3.
MAX_RELATIVE_ERROR_GGUF_ENCODER = 3e-3
FLOAT_LEVEL = 0  # accuracy_level of MatMulNBits: float32 products
_F32 = 0  # GGML_TYPE_F32


class FloatCacheSession(GgufSession):
    """llama.cpp with keys and values kept in float32, where the device keeps float16."""

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        Session.__init__(self, max_tokens)
        sizes = {"n_ctx": max_tokens, "n_batch": min(BATCH_TOKENS, max_tokens)}
        self._api, self.llama = _open(path, threads, **sizes, type_k=_F32, type_v=_F32)


def twin_gates(build: Build, engine: str, grid: Grid, rows: Sequence[Reference], task: Task, path: Path) -> list[Gate]:
    """Largest KL and relative RMS error of one engine's twin on the first `TWIN_ROWS` rows.

    Args:
        build: the student.
        engine: whose twin.
        grid: what its file holds.
        rows: torch's answers as the engine sees them.
        task: likewise.
        path: where the twin is written.
    """
    write_twin(build, engine, grid, path)
    limit = MAX_RELATIVE_ERROR_GGUF_ENCODER if engine == "gguf" and task.is_head else MAX_RELATIVE_ERROR
    return compare(engine, path, rows[:TWIN_ROWS], task, limit)


def compare(engine: str, path: Path, rows: Sequence[Reference], task: Task, max_error: float) -> list[Gate]:
    """Both gates of the twin at `path`."""
    positions = [position for row in rows for position in row.positions]
    session = _session(engine, task.is_head)(path, usable_cores(), max(len(ids) for ids, _ in positions) + 1)
    found = []
    for ids, _ in positions:
        session.forget()
        found.append(session.logits(ids))
    wanted = np.stack([logits for _, logits in positions]).astype(np.float64)
    error = float(np.sqrt(((np.stack(found) - wanted) ** 2).sum() / (wanted**2).sum()))
    kl = max(kl_nats(logits, here, task) for (_, logits), here in zip(positions, found, strict=True))
    return [
        at_most(f"{engine} in float32: KL at the answer", kl, MAX_KL_NATS, "nats"),
        at_most(f"{engine} in float32: RMS error of the logits", error, max_error, "of their RMS"),
    ]


def _session(engine: str, head: bool) -> Any:
    if engine == "gguf":
        return GgufEncoderSession if head else FloatCacheSession
    return (ENCODER_ENGINES if head else ENGINES)[engine]


def write_twin(build: Build, engine: str, grid: Grid, path: Path) -> None:
    """An engine's file without integer kernels."""
    if engine == "gguf":
        _write_gguf(build, grid, path)
    elif build.task.is_head:
        from edgestill.export.onnx_encoder import write_encoder

        write_encoder(grid, _pooling(grid), path, accuracy_level=FLOAT_LEVEL)
    elif engine == ONNX_LABELS:
        from edgestill.export.onnx_labels import write_labels

        ids = [label.token_id for label in build.task.labels]
        write_labels(grid, ids, build.task.max_text_tokens + build.task.room_tokens, path, accuracy_level=FLOAT_LEVEL)
    else:
        from edgestill.export.onnx_writer import write_onnx

        write_onnx(grid, path, accuracy_level=FLOAT_LEVEL)


def _write_gguf(build: Build, grid: Grid, path: Path) -> None:
    """Every tensor in float32. The file takes token ids, so its vocabulary is only there to be."""
    from edgestill.export.gguf_encoder import write_gguf_encoder
    from edgestill.export.gguf_writer import write_gguf
    from edgestill.export.tokenizer_writer import PRE_CANDIDATES, read_tokenizer

    name, full = build.run.name, in_full(grid)
    if build.task.is_head:
        from edgestill.export.encoder_tokenizer import add_tokenizer

        vocabulary = lambda writer: add_tokenizer(writer, build.student, build.config, build.task, ())  # noqa: E731
        write_gguf_encoder(full, _pooling(grid), list(build.task.label_names), name, vocabulary, path)
    else:
        tokenizer = read_tokenizer(build.student, build.config, build.task, PRE_CANDIDATES[0])
        write_gguf(full, tokenizer, name, "f32", path)


def in_full(grid: Grid) -> Grid:
    """The same numbers, none of them as codes."""
    return Grid(grid.config, {name: GridTensor("f32", values=t.dequantize()) for name, t in grid.tensors.items()})


def _pooling(grid: Grid) -> str:
    return "cls" if f"{bert.HEAD_DENSE}.weight" in grid.tensors else "mean"
