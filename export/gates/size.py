"""Gate: a file is as large as its weights' bits say, so that nothing is stored twice or in another type.

Counted beside the weights: in GGUF its header with the vocabulary, in a decoder's ONNX graph the tables of its ropes.
"""

from pathlib import Path

from edgestill.export.architecture import read_shape
from edgestill.export.build import Build
from edgestill.export.gates.gate import Gate, at_most
from edgestill.export.grid import Grid
from edgestill.runtime.bundle import ONNX_LABELS

MAX_EXCESS = 0.05
GRAPH_BYTES = 2**18  # of nodes, names and small constants: what shows in a file of a few megabytes only


def size_gate(build: Build, engine: str, grid: Grid) -> Gate:
    """How far a file's bytes are from what bits a weight predict, as a share of the prediction."""
    path = build.path(engine)
    assert path is not None
    if engine == ONNX_LABELS:
        from edgestill.export.onnx_labels import cut_head

        grid = cut_head(grid, [label.token_id for label in build.task.labels])
    wanted = grid.bits_per_weight * grid.parameters / 8 + _beside(build, engine, path)
    apart = abs(path.stat().st_size - wanted) / wanted
    allowed = MAX_EXCESS + GRAPH_BYTES / wanted
    return at_most(f"{engine}: bytes apart from the {wanted / 1e6:,.1f} MB predicted", apart, allowed, "of them")


def _beside(build: Build, engine: str, path: Path) -> int:
    if engine == "gguf":
        from gguf import GGUFReader

        return int(GGUFReader(path).data_offset)
    if build.task.is_head:
        return 0
    shape = read_shape(build.config)
    longest = build.task.max_text_tokens + build.task.room_tokens if engine == ONNX_LABELS else shape.context
    positions = len({kind.rope for kind in shape.kinds}) * min(shape.context, longest)
    return positions * shape.head_size * 4  # D / 2 cosines and as many sines, float32
