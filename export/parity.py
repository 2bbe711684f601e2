"""Gates: the grid, the GGUF file and the ONNX file hold the same numbers, and the device's answers follow them.

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
from edgestill.export.architecture import gguf_name, gguf_row_order, read_shape, tensor_names
from edgestill.export.build import Reader
from edgestill.export.grid import BLOCK, Floats, Grid
from edgestill.runtime import manifest
from edgestill.runtime.errors import GateFailed
from edgestill.runtime.student import load
from edgestill.runtime.task import Task

Floats64 = NDArray[np.float64]

# What int8 activations of both engines cost at most against torch's float32 product of the same weights, on the
# probability of a label: a wide bound that catches a wrong weight, not a tight one that judges a kernel.
MAX_MEAN_LABEL_KL_NATS = 0.1
# A label may flip where torch's own margin between the two best is below this; above it a flip is a wrong weight.
MAX_MARGIN_FLIPPED = 0.25
TOKENIZER_PROBES = 4_000


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
    wanted = dict(read_gguf(gguf_path, config))
    _compare(wanted, dict(read_onnx(onnx_path, config)), onnx_path)
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

    shape = read_shape(config)
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name in tensor_names(shape):
        tensor = stored.pop(gguf_name(name), None)
        if tensor is None:
            continue
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        values = values.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        order = gguf_row_order(name, shape)
        yield name, values if order is None else values[np.argsort(order)]
    yield from ((f"not in the model: {name}", np.zeros(0, np.float32)) for name in stored)


def read_onnx(path: Path, config: dict[str, Any]) -> Iterator[tuple[str, Floats]]:
    """(Hugging Face name, float32 values) of every tensor, by MatMulNBits' published layout; joined rows are parted."""
    import onnx
    from onnx import numpy_helper

    shape = read_shape(config)
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load_model(str(path)).graph.initializer}
    sizes = {"q_proj": shape.heads * shape.head_size}
    sizes |= dict.fromkeys(("k_proj", "v_proj"), shape.kv_heads * shape.head_size)
    for name, array in arrays.items():
        if name.endswith(".codes"):
            stem = name.removesuffix(".codes")
            values = _nbits(array, arrays[f"{stem}.scales_f16"])
            parts = stem.split("+")
            ends = np.cumsum([sizes.get(part.split(".")[-2], len(values)) for part in parts])[:-1]
            yield from zip(parts, np.split(values, ends), strict=True)
        elif name.endswith("norm.weight"):
            yield name, array


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


def check_answers(bundle: Path, engine: str) -> dict[str, Any]:
    """Answers of an engine on the golden rows against torch's on the same grid, through `runtime.load`.

    A set of labels is kept when all of it is; a flip's margin is then that of the label that torch was surest of.

    Raises:
        GateFailed: labels or probabilities are farther away than int8 activations explain.
    """
    student = load(bundle, engine)
    task = student.task
    kept, divergences, worst, margin = 0, [], 0.0, 0.0
    for row in manifest.read_jsonl(bundle / "golden.jsonl"):
        found = student.predict_text(row["text"])
        p = np.array([row["probabilities"][name] for name in task.label_names])
        q = np.array([found.probabilities[name] for name in task.label_names])
        kept += found.label == row["label"]
        if found.label != row["label"]:
            margin = max(margin, _margin_flipped(p, q, task))
        divergences.append(_divergence(p, q, task))
        worst = max(worst, float(np.abs(p - q).max()))
    rows = len(divergences)
    facts = {
        "rows": rows,
        "labels_kept": kept / rows,
        "mean_label_kl_nats": sum(divergences) / rows,
        "max_probability_difference": worst,
        "max_margin_flipped": margin,
    }
    if margin > MAX_MARGIN_FLIPPED or facts["mean_label_kl_nats"] > MAX_MEAN_LABEL_KL_NATS:
        raise GateFailed(
            f"the {engine} file does not answer as the trained weights do: {facts}", "report this as a bug"
        )
    return facts


def _divergence(p: Floats64, q: Floats64, task: Task) -> float:
    """KL divergence in nats of the engine's (L,) probabilities from torch's; of a set the mean over its labels' own."""
    if not task.is_multilabel:
        return _kl_nats(p, q)
    return sum(_kl_nats(np.array([a, 1 - a]), np.array([b, 1 - b])) for a, b in zip(p, q, strict=True)) / len(p)


def _kl_nats(p: Floats64, q: Floats64) -> float:
    return float((p * np.log(np.maximum(p, 1e-12) / np.maximum(q, 1e-12))).sum())


def _margin_flipped(p: Floats64, q: Floats64, task: Task) -> float:
    """How sure torch was of what the engine changed: its best label over the engine's, or a label over its absence."""
    if not task.is_multilabel:
        return float(p.max() - p[q.argmax()])
    changed = (p >= task.threshold) != (q >= task.threshold)
    return float(2 * np.abs(p - task.threshold)[changed].max())


def tokenizer_probes(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Strings that tell tokenizers apart: the given texts, and seeded mixtures of words, digits, blanks and scripts."""
    rng = random.Random(seed)
    pieces = [
        *"abcxyzABC0123456789 .,;:!?'\"-_/\\()[]{}<>@#$%&*+=~^|`\t\n",
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
