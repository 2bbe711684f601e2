"""Float32 tensors by name from a GGUF file: what the device computes itself. Reads no quantized tensor, writes nothing.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3).
"""

import mmap
import struct
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime.errors import EdgestillError

ALIGNMENT_BYTES = 32  # of a file that names none, and ours name none
_FLOAT32 = 0  # ggml_type
_STRING, _ARRAY = 8, 9  # gguf_metadata_value_type
_SIZES_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _Cursor:
    """A place in the header that moves as it is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 4  # behind the magic

    def number(self, form: str) -> int:
        """One little-endian integer: I of 4 bytes, Q of 8."""
        value: int = struct.unpack_from(f"<{form}", self.data, self.place)[0]
        self.place += struct.calcsize(form)
        return value

    def text(self) -> str:
        """A string with its length before it."""
        length = self.number("Q")
        self.place += length
        return self.data[self.place - length : self.place].decode()

    def skip(self, kind: int) -> None:
        """Pass one value of the metadata."""
        if kind == _STRING:
            length = self.number("Q")
            self.place += length
        elif kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind in _SIZES_BYTES:
                self.place += count * _SIZES_BYTES[kind]
            else:
                for _ in range(count):
                    self.skip(kind)
        else:
            self.place += _SIZES_BYTES[kind]


def read_float32(path: Path, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """Those of the named tensors that the file holds, each in its own shape: of a matrix (N, K).

    Raises:
        EdgestillError: no GGUF file, one that ends too early, or a tensor that is not float32.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise EdgestillError(f"{path} is not a GGUF file")
        try:
            return _read(_Cursor(data), names)
        except (struct.error, KeyError, ValueError) as error:
            raise EdgestillError(f"{path} is not a whole GGUF file: {error}", "build or copy it again") from None


def _read(cursor: _Cursor, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
    _, tensors, pairs = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    for _ in range(pairs):
        cursor.text()
        cursor.skip(cursor.number("I"))
    found = []
    for _ in range(tensors):
        name = cursor.text()
        shape = [cursor.number("Q") for _ in range(cursor.number("I"))]
        kind, offset_bytes = cursor.number("I"), cursor.number("Q")
        if name in names:
            if kind != _FLOAT32:
                raise ValueError(f"{name} has type {kind}, wanted {_FLOAT32}")
            found.append((name, shape[::-1], offset_bytes))
    start = -(-cursor.place // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return {
        name: np.frombuffer(cursor.data, "<f4", int(np.prod(shape)), start + offset).reshape(shape).copy()
        for name, shape, offset in found
    }
