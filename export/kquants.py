"""llama.cpp's own formats, by its own quantizer: K-quants and IQ4. Decides nothing about which tensor gets which type.

llama.cpp takes a plainer type for a tensor whose rows are no multiple of 256, so what such a file holds is counted
afterwards, by `contents`.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgestill.export.grid import Floats
from edgestill.runtime.errors import EdgestillError, missing_package
from edgestill.runtime.gguf_session import INSTALL_COMMAND

# Plain q4_0 and q8_0 are the grid's own: with an importance matrix llama.cpp makes some tensors of its q4_0 Q4_1.
TYPES = ("q2_K", "q3_K_S", "q3_K_M", "q3_K_L", "q4_K_S", "q4_K_M", "q5_K_S", "q5_K_M", "q6_K", "iq4_NL", "iq4_XS")


def load_llama() -> Any:
    """The package llama_cpp.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import llama_cpp
    except ImportError:
        raise missing_package("llama-cpp-python", INSTALL_COMMAND) from None
    return llama_cpp


def quantize_file(source: Path, target: Path, kind: str, importance: Mapping[str, Floats]) -> None:
    """Write `source`, a GGUF file of float32, as `target` in llama.cpp's format `kind`, one of `TYPES`.

    Args:
        source: as `gguf_writer` leaves it.
        target: written as it is; the caller gives a place that does not look whole yet.
        kind: such as q4_K_M.
        importance: mean squares by tensor, (K,) each; empty for none.

    Raises:
        EdgestillError: llama.cpp refused; its own words are in the message.
    """
    llama = load_llama()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    parameters.nthread = len(os.sched_getaffinity(0))
    # ctypes keeps no reference to what a pointer points at: entries and arrays live until the call is over
    arrays = {name.encode(): values for name, values in sorted(importance.items())}
    entries = (llama.llama_model_imatrix_data * (len(arrays) + 1))()  # one without a name ends the list
    for entry, (name, values) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if arrays:
        parameters.imatrix = ctypes.cast(entries, ctypes.POINTER(llama.llama_model_imatrix_data))
    with _log(llama) as lines:
        failed = llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if failed:
        reason = lines[-1] if lines else "it does not say why"
        raise EdgestillError(f"llama.cpp could not write {kind}: {reason}", "choose another scheme")


@contextmanager
def _log(llama: Any) -> Iterator[list[str]]:
    """What llama.cpp says while it works, kept and not printed: it has a line for every tensor that falls back."""
    from llama_cpp import _logger

    lines: list[str] = []

    def keep(_level: int, text: bytes, _data: Any) -> None:
        if text.strip(b". \n"):
            lines.append(text.decode(errors="replace").strip())

    callback = llama.llama_log_callback(keep)  # a name of its own: ctypes keeps no reference to it either
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))
