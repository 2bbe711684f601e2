"""GGUF back end: the grid's codes as llama.cpp stores them. Decides nothing about values.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.export.architecture import Shape, gguf_name, gguf_row_order, read_shape
from edgestill.export.grid import BLOCK, Grid, GridTensor
from edgestill.export.tokenizer_writer import GgufTokenizer, add_tokenizer

FILE_TYPES = {"q4_0": 2, "q8_0": 7}  # llama_ftype: LLAMA_FTYPE_MOSTLY_Q4_0, LLAMA_FTYPE_MOSTLY_Q8_0


def write_gguf(grid: Grid, tokenizer: GgufTokenizer, name: str, quantization: str, path: Path) -> None:
    """Write the grid with its tokenizer to one GGUF file.

    Args:
        grid: every tensor.
        tokenizer: what `tokenizer_writer` read from the base's files.
        name: general.name.
        quantization: of the linear layers; names the file type.
        path: written as it is; the caller gives a place that does not look whole yet.
    """
    import gguf

    shape = read_shape(grid.config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, shape)
    add_tokenizer(writer, tokenizer)
    kinds = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
    for tensor_name, tensor in grid.tensors.items():
        order = gguf_row_order(tensor_name, shape)
        stored = tensor if order is None else tensor.rows(order)
        if stored.kind == "f32":
            writer.add_tensor(gguf_name(tensor_name), stored.dequantize())
        else:
            writer.add_tensor(gguf_name(tensor_name), block_bytes(stored), raw_dtype=kinds[stored.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)


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
