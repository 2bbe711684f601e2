"""GGUF back end for encoders: the trunk as llama.cpp's architecture bert, the head beside it under llama.cpp's names.

llama.cpp computes the trunk (token embeddings, no pooling); pooling and head are the runtime's, from the same file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.export.bert import POSITIONS, BertShape, gguf_name, read_shape, tensor_names
from edgestill.export.gguf_writer import block_bytes, finish
from edgestill.export.grid import Floats, Grid
from edgestill.runtime.gguf_session import POOLING_KEY


def write_gguf_encoder(
    grid: Grid, pooling: str, labels: list[str], name: str, add_vocabulary: Callable[[Any], str], path: Path
) -> str:
    """Write the grid with its tokenizer to one GGUF file; returns what `add_vocabulary` said.

    Args:
        grid: trunk and head.
        pooling: mean over the tokens, or cls, the first token through the head's dense layer.
        labels: names of the head's L outputs, in their order.
        name: general.name.
        add_vocabulary: writes the tokenizer's keys to the writer it is given.
        path: written as it is; the caller gives a place that does not look whole yet.
    """
    import gguf

    shape, kinds = read_shape(grid.config), {tensor.kind for tensor in grid.tensors.values()}
    file_type = "MOSTLY_Q4_0" if "q4_0" in kinds else "MOSTLY_Q8_0" if "q8_0" in kinds else "ALL_F32"
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, shape)
    writer.add_pooling_type(gguf.PoolingType.NONE)
    writer.add_classifier_output_labels(labels)
    writer.add_string(POOLING_KEY, pooling)
    said = add_vocabulary(writer)
    for tensor_name, tensor in grid.tensors.items():
        if tensor.kind != "f32":
            raw = gguf.GGMLQuantizationType[tensor.kind.upper()]
            writer.add_tensor(gguf_name(tensor_name), block_bytes(tensor), raw_dtype=raw)
            continue
        values = tensor.dequantize()
        first = shape.first_position if tensor_name == POSITIONS else 0  # llama.cpp counts positions from 0
        writer.add_tensor(gguf_name(tensor_name), values[first:])
    finish(writer)
    return said


def _add_shape(writer: Any, shape: BertShape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.norm_epsilon)
    writer.add_causal_attention(False)


def read_gguf_encoder(path: Path, config: dict[str, Any]) -> Iterator[tuple[str, Floats]]:
    """(Hugging Face name, float32 values) of every tensor, dequantized by the gguf package.

    The rows of positions that no token reads are not in the file; they come back as the grid's zeros.
    """
    import gguf

    from edgestill.export.contents import gguf_tensors

    shape = read_shape(config)
    known = {gguf_name(name): name for name in tensor_names(shape, dense=True)}
    for tensor in gguf_tensors(path).values():
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        values = values.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        name = known.get(tensor.name, f"not in the model: {tensor.name}")
        if name == POSITIONS:
            values = np.concatenate([np.zeros((shape.first_position, shape.width), np.float32), values])
        yield name, values
