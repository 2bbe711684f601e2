"""Fold the adapter into the base it was trained on, prove that nothing else changed, and round to the grid."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgestill.distill.run import StudentRun
from edgestill.export.architecture import EMBEDDING, HEAD, read_shape, storage_kind, tensor_names
from edgestill.export.grid import Grid, Kind, quantize
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, GateFailed

MAX_MERGE_DIFFERENCE = 1e-3


def merge(run: StudentRun, student: Path, probes: list[list[int]]) -> tuple[Any, float]:
    """The merged float32 model and the largest logit difference between adapter-on and merged.

    Args:
        run: names the base; its weights must hash to what the adapter was trained on.
        student: folder of the run.
        probes: token ids of a few prompts.

    Raises:
        GateFailed: merged logits differ by more than 1e-3, or a head that should be tied is not.
        EdgestillError: the base's weights changed since training.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    _check_base_unchanged(run)
    base = AutoModelForCausalLM.from_pretrained(run.base["folder"], dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(student / "adapter")).eval()
    with torch.inference_mode():
        before = [adapted(input_ids=torch.tensor([ids])).logits for ids in probes]
    merged = adapted.merge_and_unload(safe_merge=True)
    with torch.inference_mode():
        after = [merged(input_ids=torch.tensor([ids])).logits for ids in probes]
    difference = max(float((x - y).abs().max()) for x, y in zip(before, after, strict=True))
    if not difference <= MAX_MERGE_DIFFERENCE:
        raise GateFailed(
            f"merged logits differ from the adapter's by {difference:.2g}, wanted at most {MAX_MERGE_DIFFERENCE}"
        )
    if merged.config.tie_word_embeddings and merged.lm_head.weight is not merged.get_input_embeddings().weight:
        raise GateFailed("the head should be tied to the embedding and is not after merging")
    return merged, difference


def to_grid(model: Any, config: dict[str, Any], quantization: Kind) -> Grid:
    """Round every tensor of a merged model to the grid.

    Args:
        model: float32 transformers model.
        config: the base's config.json.
        quantization: for the linear layers; embedding and head are q8_0, norms stay float32.
    """
    weights = model.state_dict()
    tensors = {}
    for name in tensor_names(read_shape(config)):
        if name not in weights:
            raise EdgestillError(f"the merged model has no tensor {name}", "the base is not a plain Llama-type model")
        tensors[name] = quantize(name, weights[name].numpy().astype(np.float32), storage_kind(name, quantization))
    return Grid(config, tensors)


def load_grid(model: Any, grid: Grid) -> Any:
    """Put the grid's values back into `model`, in place: torch's view of what ships."""
    values = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in grid.tensors.items()}
    if HEAD not in values:
        values[HEAD] = values[EMBEDDING]
    model.load_state_dict(values, strict=True)
    return model.eval()


def _check_base_unchanged(run: StudentRun) -> None:
    weights = sorted(Path(run.base["folder"]).glob("*.safetensors"))
    hashes = [manifest.sha256_file(path) for path in weights]
    if run.base["weights_sha256"] not in (manifest.sha256_json(hashes), *hashes):
        raise EdgestillError(
            f"the base in {run.base['folder']} is not the one the adapter was trained on", "run train again"
        )
