"""A decoder's weights between torch and the grid."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgestill.export.architecture import EMBEDDING, HEAD, read_shape, storage_kind, tensor_names
from edgestill.export.grid import Grid, Kind, quantize
from edgestill.runtime.errors import EdgestillError


def to_grid(model: Any, config: dict[str, Any], quantization: Kind) -> Grid:
    """Round every tensor of a merged model to the grid.

    Args:
        model: float32 transformers model.
        config: the base's config.json.
        quantization: for the linear layers; embedding and head are q8_0, norms and biases stay float32.
    """
    weights = model.state_dict()
    tensors = {}
    for name in tensor_names(read_shape(config)):
        if name not in weights:
            raise EdgestillError(f"the merged model has no tensor {name}", "the base is not what its config.json says")
        tensors[name] = quantize(name, weights[name].numpy().astype(np.float32), storage_kind(name, quantization))
    return Grid(config, tensors)


def empty_model(folder: Path) -> Any:
    """A float32 transformers model of the folder's config.json whose weights are yet to be loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)


def load_grid(model: Any, grid: Grid) -> Any:
    """Put the grid's values back into `model`, in place: torch's view of what ships."""
    values = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in grid.tensors.items()}
    if HEAD not in values:
        values[HEAD] = values[EMBEDDING]
    model.load_state_dict(values, strict=True)
    return model.eval()
