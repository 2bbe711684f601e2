"""A decoder's adapter folded into the base it was trained on, and the proof that nothing else changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, GateFailed

MAX_MERGE_DIFFERENCE = 1e-3


def merge(base_folder: Path, base_sha256: str, adapter: Path, probes: Sequence[Sequence[int]]) -> tuple[Any, float]:
    """The merged float32 model, and the largest difference that merging made to a logit.

    Args:
        base_folder: the base's Hugging Face folder.
        base_sha256: what its weights must hash to: those that the adapter was trained on.
        adapter: peft's folder.
        probes: token ids of a few prompts.

    Raises:
        GateFailed: merged logits differ by more than 1e-3, or a head that should be tied is not.
        EdgestillError: the base's weights changed since training.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    _check_base_unchanged(base_folder, base_sha256)
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(adapter)).eval()
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


def _check_base_unchanged(folder: Path, sha256: str) -> None:
    hashes = [manifest.sha256_file(path) for path in sorted(folder.glob("*.safetensors"))]
    if sha256 not in (manifest.sha256_json(hashes), *hashes):
        raise EdgestillError(f"the base in {folder} is not the one the adapter was trained on", "run train again")
