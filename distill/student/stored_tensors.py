"""Tensors of safetensors files as places of bytes: found, and put together in one new file. Nothing is computed."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.runtime.errors import EdgestillError

WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a safetensors file; `dtype` and `shape` are the header's own."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder by name, out of the files that transformers would load.

    Raises:
        EdgestillError: a file cannot be read.
    """
    names = {WEIGHTS_NAME}
    if not (folder / WEIGHTS_NAME).is_file() and (folder / INDEX_NAME).is_file():
        names = set(json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"].values())
    tensors: dict[str, Stored] = {}
    for name in sorted(names):
        tensors |= _read_header(folder / name)
    return tensors


def _read_header(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds (https://huggingface.co/docs/safetensors, Format)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"), path.open("rb") as file:  # safe_open checks the header against the file's size
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, SafetensorError) as error:
        raise EdgestillError(f"student.base: {path} cannot be read: {error}", "save or fetch the model again") from None
    return {
        name: Stored(path, facts["dtype"], tuple(facts["shape"]), 8 + length + start, end - start)
        for name, facts in header.items()
        if name != "__metadata__"
        for start, end in [facts["data_offsets"]]
    }


def write_tensors(tensors: dict[str, Stored], path: Path) -> None:
    """One safetensors file, wide types first, so that every tensor is aligned; one tensor in memory at a time."""
    bits = {name: int((re.search(r"\d+", stored.dtype) or ["8"])[0]) for name, stored in tensors.items()}
    order = sorted(tensors, key=lambda name: (-bits[name], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset_bytes = 0
    for name in order:
        stored, start = tensors[name], offset_bytes
        offset_bytes += stored.size_bytes
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [start, offset_bytes]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for stored in (tensors[name] for name in order):
            file.write(np.memmap(stored.file, np.uint8, "r", stored.offset_bytes, (stored.size_bytes,)).data)
