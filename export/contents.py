"""What a finished model file really holds, read back from it: tensors by type, and bits per weight."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgestill.export.grid import BLOCK


@dataclass(frozen=True)
class Contents:
    """Tensors by the type they are stored in, and the mean size of a weight over all of them, scales counted."""

    tensors: dict[str, int]
    bits_per_weight: float

    def words(self) -> str:
        """Such as `30 tensors Q4_K, 60 Q5_0; 5.3 bits per weight`, the most frequent type first."""
        (first, count), *others = self.tensors.items()
        more = "".join(f", {n} {kind}" for kind, n in others)
        return f"{count} tensor{'s' * (count > 1)} {first}{more}; {self.bits_per_weight:.2f} bits per weight"


class _QuickReader(gguf.GGUFReader):
    """gguf's reader, a quarter of its time: np.memmap is slow where a vocabulary is 100,000 small slices."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        order = self.byte_order if override_order is None else override_order
        return np.frombuffer(self.data, np.dtype(dtype).newbyteorder(order), int(count), int(offset))


def gguf_tensors(path: Path) -> dict[str, Any]:
    """Every tensor of a GGUF file by its name, as gguf's `ReaderTensor`; its data stay in the file."""
    return {tensor.name: tensor for tensor in _QuickReader(path).tensors}


def gguf_contents(path: Path) -> Contents:
    """Of a GGUF file, with ggml's names of types."""
    tensors = gguf_tensors(path).values()
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    return Contents(_sorted(Counter(t.tensor_type.name for t in tensors)), bits)


def onnx_contents(path: Path, names: Collection[str]) -> Contents:
    """Of an ONNX file whose weights are `names`: INT4 and INT8 are blocks of 32 with a float16 scale.

    Tables and shapes of the graph that are no weights count for nothing.
    """
    import onnx
    from onnx import numpy_helper

    held, size_bytes, weights = Counter[str](), 0, 0
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load_model(str(path)).graph.initializer}
    for name, array in arrays.items():
        stem = name.removesuffix(".codes")
        if not set(names).issuperset(stem.split("+")):
            continue
        kind, count = "F32", array.size
        size_bytes += array.nbytes
        if stem != name:
            scales = arrays[f"{stem}.scales_f16"]
            count = scales.size * BLOCK
            kind = f"INT{8 * array.nbytes // count}"
            size_bytes += scales.nbytes
        weights += count
        held[kind] += len(stem.split("+"))
    return Contents(_sorted(held), 8 * size_bytes / weights)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
