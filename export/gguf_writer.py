"""GGUF back end: the grid's codes as llama.cpp stores them. Decides nothing about values.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.export.architecture import Shape, gguf_constants, gguf_name, gguf_row_order, read_shape, to_file
from edgestill.export.grid import BLOCK, Floats, Grid, GridTensor
from edgestill.export.tokenizer_writer import GgufTokenizer, add_tokenizer
from edgestill.runtime.errors import EdgestillError

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}  # llama_ftype: LLAMA_FTYPE_ALL_F32, _MOSTLY_F16, ...


def write_gguf(grid: Grid, tokenizer: GgufTokenizer, name: str, quantization: str, path: Path) -> None:
    """Write the grid with its tokenizer to one GGUF file.

    Args:
        grid: every tensor.
        tokenizer: what `tokenizer_writer` read from the base's files.
        name: general.name.
        quantization: of the linear layers; names the file type. f16 wants a grid of f32 and halves its matrices.
        path: written as it is; the caller gives a place that does not look whole yet.
    """
    import gguf

    shape = read_shape(grid.config)
    writer = gguf.GGUFWriter(path, shape.family.gguf)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, shape)
    add_tokenizer(writer, tokenizer)
    kinds = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
    for tensor_name, tensor in grid.tensors.items():
        order = gguf_row_order(tensor_name, shape)
        stored = to_file(tensor_name, tensor if order is None else tensor.rows(order), shape)
        if stored.kind == "f32":
            values = stored.dequantize()
            half = quantization == "f16" and values.ndim == 2
            writer.add_tensor(gguf_name(tensor_name, shape), _halved(tensor_name, values) if half else values)
        else:
            writer.add_tensor(gguf_name(tensor_name, shape), block_bytes(stored), raw_dtype=kinds[stored.kind])
    for constant, values in gguf_constants(shape).items():
        writer.add_tensor(constant, values)
    finish(writer)


def finish(writer: Any) -> None:
    """Write all that a `gguf.GGUFWriter` was given, and close its file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _halved(name: str, values: Floats) -> NDArray[np.float16]:
    if np.abs(values).max() > np.finfo(np.float16).max:
        raise EdgestillError(f"the tensor {name} holds values beyond float16", "choose another scheme, such as q8_0")
    return values.astype(np.float16)


def _add_shape(writer: Any, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    _add_windows(writer, shape)


def _add_windows(writer: Any, shape: Shape) -> None:
    """Rope's base, and where layers have windows which ones, how long, and the base of theirs."""
    windowed = [kind for kind in shape.kinds if kind.window is not None]
    unbounded = [kind for kind in shape.kinds if kind.window is None]
    writer.add_rope_freq_base((unbounded or windowed)[0].rope.theta)
    if windowed:
        writer.add_sliding_window(windowed[0].window)
        writer.add_sliding_window_pattern([kind.window is not None for kind in shape.kinds])
        writer.add_rope_freq_base_swa(windowed[0].rope.theta)


def block_bytes(tensor: GridTensor) -> NDArray[np.uint8]:
    """Codes and scales as ggml blocks, (N, K / 32 * bytes a block) uint8.

    block_q4_0: float16 scale, then 16 bytes; the low nibbles are elements 0 to 15, the high ones 16 to 31, code + 8.
    block_q8_0: float16 scale, then 32 signed bytes.
    """
    assert tensor.codes is not None
    assert tensor.scales is not None
    codes = tensor.codes.reshape(len(tensor.codes), -1, BLOCK)
    if tensor.kind == "q4_0":
        nibbles = (codes + 8).astype(np.uint8)
        packed = nibbles[..., : BLOCK // 2] | (nibbles[..., BLOCK // 2 :] << 4)
    else:
        packed = codes.view(np.uint8)
    scales = np.ascontiguousarray(tensor.scales)[..., None].view(np.uint8)
    return np.concatenate([scales, packed], axis=-1).reshape(len(codes), -1)
