"""The importance matrix of a decoder: how large each input of its linear layers is on texts of the user's own.

What llama.cpp's tool imatrix measures (https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix), in torch.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgestill.export.architecture import EMBEDDING, HEAD, gguf_name, read_shape
from edgestill.export.grid import Floats
from edgestill.runtime import manifest
from edgestill.runtime.errors import UsageError

PIECE_TOKENS = 512
MAX_TOKENS = 131_072  # what is beyond is not read: means move little and minutes grow


@dataclass(frozen=True)
class Importance:
    """Mean square of every input channel, (K,) float32 by GGUF's tensor name; and over how many tokens."""

    means: dict[str, Floats]
    tokens: int


def read_texts(path: Path) -> list[str]:
    """Calibration texts: a .txt file is one text, a .jsonl file one a line under the key `text`.

    Raises:
        UsageError: no such file, another ending, a row without a text, or nothing in it.
    """
    if path.suffix not in (".txt", ".jsonl") or not path.is_file():
        raise UsageError(f"{path} is no .txt or .jsonl file", "name one with --calibrate FILE")
    if path.suffix == ".txt":
        try:
            texts = [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8: {error}", "save it as UTF-8") from None
    else:
        rows = list(manifest.read_jsonl(path))
        bad = next((row for row in rows if not isinstance(row.get("text"), str)), None)
        if bad is not None:
            raise UsageError(f"{path} has a row {json.dumps(bad)[:60]}", 'wanted {"text": "..."} a line')
        texts = [row["text"] for row in rows]
    if not any(text.strip() for text in texts):
        raise UsageError(f"{path} holds no text", "name a file with some pages of typical text")
    return texts


def pieces(encode: Callable[[str], list[int]], first: list[int], texts: list[str]) -> list[list[int]]:
    """Token ids of at most `PIECE_TOKENS` each, every piece after the ids `first`; `MAX_TOKENS` in all."""
    room, total = PIECE_TOKENS - len(first), 0
    found: list[list[int]] = []
    for text in texts:
        ids = encode(text)
        for start in range(0, len(ids), room):
            piece = [*first, *ids[start : start + room]][: MAX_TOKENS - total]
            if not piece:
                return found
            found.append(piece)
            total += len(piece)
    return found


def measure(model: Any, config: dict[str, Any], ids: list[list[int]], tell: Callable[[int, int], None]) -> Importance:
    """Run `model` (transformers, float32) over the pieces `ids` and average x * x over tokens, by input channel.

    Rows of query and key are reordered in the GGUF file, columns are not, so that the means fit as they are. A tied
    head counts for the embedding, which is the head's matrix.
    """
    shape, sums, hooks = read_shape(config), dict[str, torch.Tensor](), []

    def add(name: str, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        squares = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).square().sum(0, dtype=torch.float64)
        sums[name] = sums[name] + squares if name in sums else squares

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = EMBEDDING if shape.tied and f"{name}.weight" == HEAD else f"{name}.weight"
            hooks.append(module.register_forward_pre_hook(functools.partial(add, gguf_name(weight, shape))))
    try:
        with torch.inference_mode():
            for done, piece in enumerate(ids):
                tell(done, len(ids))
                model(input_ids=torch.tensor([piece]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Importance(_means(sums, sum(map(len, ids))), sum(map(len, ids)))


def _means(sums: Mapping[str, torch.Tensor], tokens: int) -> dict[str, Floats]:
    return {name: np.ascontiguousarray((total / tokens).numpy(), np.float32) for name, total in sums.items()}
