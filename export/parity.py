"""Gate: the grid, the GGUF file and the ONNX file hold the same numbers.

Reading an artifact back uses other code than writing it: llama.cpp's own dequantization for GGUF, the operator's
published layout for ONNX. Needs no torch.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.export import bert
from edgestill.export.architecture import (
    from_file,
    gguf_constants,
    gguf_name,
    gguf_row_order,
    read_shape,
    rows_of,
    tensor_names,
)
from edgestill.export.build import Reader
from edgestill.export.gguf_encoder import read_gguf_encoder
from edgestill.export.grid import BLOCK, Floats, Grid
from edgestill.runtime.errors import GateFailed

TOKENIZER_PROBES = 10_000


def check_same_numbers(grid: Grid, files: Mapping[str, tuple[Path | None, Reader]]) -> dict[str, Any]:
    """Every tensor of every file, dequantized, equals the grid's; array-equal, no tolerance.

    Args:
        grid: what was written.
        files: for each engine its file, None where none was built, and how it is read back.

    Raises:
        GateFailed: names the first tensor that differs.
    """
    wanted = {name: tensor.dequantize() for name, tensor in grid.tensors.items()}
    for path, read in files.values():
        if path is not None:
            _compare(wanted, dict(read(path, grid.config)), path)
    compared = {engine: path is not None for engine, (path, _) in files.items()}
    return {"tensors": len(wanted), **compared, "max_difference": 0.0}


def check_files_agree(onnx_path: Path, gguf_path: Path, config: dict[str, Any]) -> int:
    """Both files of a bundle hold the same numbers; returns how many tensors were compared.

    Raises:
        GateFailed: names the first tensor that differs.
    """
    encoder = config["model_type"] in bert.FAMILIES
    from_gguf, from_onnx = (read_gguf_encoder, read_onnx_encoder) if encoder else (read_gguf, read_onnx)
    wanted = dict(from_gguf(gguf_path, config))
    _compare(wanted, dict(from_onnx(onnx_path, config)), onnx_path)
    return len(wanted)


def _compare(wanted: dict[str, Floats], found: dict[str, Floats], path: Path) -> None:
    if set(wanted) != set(found):
        raise GateFailed(f"{path} holds other tensors than the grid: {sorted(set(wanted) ^ set(found))[:3]}")
    for name, values in wanted.items():
        if not np.array_equal(values, found[name]):
            raise GateFailed(f"{path} holds other numbers than the grid in {name}", "build the bundle again")


def read_gguf(path: Path, config: dict[str, Any]) -> Iterator[tuple[str, Floats]]:
    """(Hugging Face name, float32 values) of every tensor, dequantized by the gguf package."""
    import gguf

    from edgestill.export.contents import gguf_tensors

    shape, stored = read_shape(config), gguf_tensors(path)
    for name in tensor_names(shape):
        tensor = stored.pop(gguf_name(name, shape), None)
        if tensor is None:
            continue
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        values = values.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        order = gguf_row_order(name, shape)
        yield name, from_file(name, values if order is None else values[np.argsort(order)], shape)
    for name, values in gguf_constants(shape).items():
        if name in stored and np.array_equal(stored[name].data, values):
            stored.pop(name)
    yield from ((f"not in the model: {name}", np.zeros(0, np.float32)) for name in stored)


def read_onnx(path: Path, config: dict[str, Any]) -> Iterator[tuple[str, Floats]]:
    """(Hugging Face name, float32 values) of every tensor, by MatMulNBits' published layout; joined rows are parted."""
    import onnx
    from onnx import numpy_helper

    shape = read_shape(config)
    known = set(tensor_names(shape))
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load_model(str(path)).graph.initializer}
    for name, array in arrays.items():
        stem = name.removesuffix(".codes")
        parts = stem.split("+")
        if not known.issuperset(parts):
            continue
        values = from_file(name, array, shape) if stem == name else _nbits(array, arrays[f"{stem}.scales_f16"])
        ends = np.cumsum([rows_of(part, shape) for part in parts])[:-1]
        yield from zip(parts, np.split(values, ends), strict=True)


def read_onnx_encoder(path: Path, config: dict[str, Any]) -> Iterator[tuple[str, Floats]]:
    """(Hugging Face name, float32 values) of every tensor of an encoder's file; joined ones are parted, all alike.

    Constants of the graph that are no tensor of the model are left out.
    """
    import onnx
    from onnx import numpy_helper

    known = set(bert.tensor_names(bert.read_shape(config), dense=True))
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load_model(str(path)).graph.initializer}
    for name, array in arrays.items():
        stem = name.removesuffix(".codes")
        parts = stem.split("+")
        if known.issuperset(parts):
            values = array if stem == name else _nbits(array, arrays[f"{stem}.scales_f16"])
            yield from zip(parts, np.split(values, len(parts)), strict=True)


def _nbits(packed: NDArray[np.uint8], scales: NDArray[np.float16]) -> Floats:
    """MatMulNBits without zero points: (code - 2^(bits-1)) * scale; packed (N, blocks * 32 * bits / 8) in any shape."""
    packed = packed.reshape(*scales.shape, -1)
    if packed.shape[-1] == BLOCK:
        codes = packed.astype(np.float32) - 128
    else:
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], BLOCK).astype(np.float32) - 8
    return np.asarray((codes * scales[..., None].astype(np.float32)).reshape(len(packed), -1), np.float32)


def tokenizer_probes(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Strings that tell tokenizers apart: the given texts, and seeded mixtures of words, digits, blanks and scripts."""
    rng = random.Random(seed)
    pieces = [
        *"abcxyzABC0123456789 .,;:!?'\"-_/\\()[]{}<>@#$%&*+=~^|`\t\n",
        *["<s>", "</s>", "<|im_start|>", "<|endoftext|>", "<start_of_turn>", "<0x0A>", "[CLS]", "[MASK]", "##s"],
        *["  ", "\n\n", "\r\n", " \n ", "'s", "'LL", "n't", "http://a.b/c?d=1", "e.g.", "...", "--", "1,000.50", "007"],
        *[
            "é",
            "ß",
            "ñ",
            "ø",
            "你好",
            "世界",
            "привет",
            "שלום",
            "مرحبا",
            "नमस्ते",
            "ไทย",
            "😀",
            "👩‍👩‍👧",
            "\U0001d4b3",
            "\u00a0",
            "\u200b",
            "½",
            "²",
            "Ⅳ",
        ],
    ]
    words = [word for text in texts for word in text.split()] or ["word"]
    made = [
        "".join(rng.choice((rng.choice(pieces), " " + rng.choice(words))) for _ in range(rng.randint(1, 24)))
        for _ in range(TOKENIZER_PROBES)
    ]
    return [*texts, *made]
