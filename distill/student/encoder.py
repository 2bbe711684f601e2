"""The encoder student in torch: trunk, pooling, classification head; from a base, to a folder, and back. No training.

One definition for training, evaluation and the export's gates.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from edgestill.distill.student.attention import blocks_of, use_packed_attention
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

WEIGHTS_NAME, HEAD_NAME = "model.safetensors", "head.json"
HEAD_INIT_STD = 0.02
SPELLINGS = {"mean_tokens": "mean", "cls_token": "cls"}
POOLING_FLAGS = [
    f"pooling_mode_{mode}"
    for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
]

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class HeadShape:
    """What stands on the trunk: pooling over the hidden states, perhaps a dense layer with tanh, L outputs.

    mean: the mean over all tokens, as sentence-transformers' bases were trained. cls: the first token, through a dense
    layer with tanh (BERT's pooler, RoBERTa's classification head).
    """

    pooling: Pooling
    labels: int
    schema: str = "edgestill-head/1"


class Encoder(torch.nn.Module):
    """A bidirectional trunk and its head. Tensor names: those of the trunk, `head.dense.*` with cls, `head.out.*`."""

    def __init__(self, trunk: Any, shape: HeadShape) -> None:
        """`trunk` is a transformers model without its own pooler; the head is fresh, from torch's generator."""
        super().__init__()
        use_packed_attention(trunk)
        self.trunk = trunk
        self.shape = shape
        width = trunk.config.hidden_size
        layers = {"out": torch.nn.Linear(width, shape.labels)}
        if shape.pooling == "cls":
            layers["dense"] = torch.nn.Linear(width, width)
        self.head = torch.nn.ModuleDict(layers)
        for layer in layers.values():
            torch.nn.init.normal_(layer.weight, std=HEAD_INIT_STD)
            torch.nn.init.zeros_(layer.bias)

    @property
    def first_position(self) -> int:
        """Row of the position table for the first token: RoBERTa's types count from the padding id on."""
        config = self.trunk.config
        return 0 if config.model_type == "bert" else config.pad_token_id + 1

    def forward(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits (R, L), float32, of R rows of token ids, each with its first and last special token.

        They lie one after the other in one sequence of T tokens; no row sees another.
        """
        return self.classify(self.pooled(rows)).float()

    def pooled(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """(R, H) for R rows of token ids: what the head classifies."""
        owner = torch.tensor([number for number, ids in enumerate(rows) for _ in ids])
        positions = torch.tensor([[place for ids in rows for place in range(len(ids))]])
        ids = torch.tensor([[token for ids in rows for token in ids]])
        blocks = blocks_of([len(row) for row in rows], lambda here: owner[here][:, None] == owner[here][None])
        hidden = self.trunk(
            input_ids=ids, position_ids=positions + self.first_position, blocks=blocks
        ).last_hidden_state[0]
        return self.pool(hidden, owner)

    def pool(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(T, H) hidden states -> (R, H)."""
        lengths = torch.bincount(rows)
        if self.shape.pooling == "cls":
            return hidden[lengths.cumsum(0) - lengths]
        sums = torch.zeros(len(lengths), hidden.shape[1], dtype=torch.float32).index_add(0, rows, hidden.float())
        return sums / lengths[:, None]

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """(R, H) -> (R, L)."""
        if "dense" in self.head:
            pooled = torch.tanh(self.head["dense"](pooled))
        logits: torch.Tensor = self.head["out"](pooled)
        return logits

    def logits(self, ids: list[int]) -> torch.Tensor:
        """(L,) for one row."""
        return self([ids])[0]


def new_encoder(folder: Path, labels: int) -> Encoder:
    """An encoder student to be trained: the trunk of a base's folder, a fresh head for L labels.

    A BERT type brings its pooler's weights along for the dense layer, where the folder has them.
    """
    from transformers import AutoModel

    _quiet()
    trunk = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    encoder = Encoder(trunk, HeadShape(_pooling_of(folder), labels))
    if encoder.shape.pooling == "cls":
        _take_pooler(encoder, folder)
    return encoder


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write model.safetensors (float32) and head.json into `folder`, which also gets the trunk's config.json."""
    tensors = {name: value.detach().float().contiguous() for name, value in _named(encoder).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_NAME)
    encoder.trunk.config.save_pretrained(folder)
    manifest.save(folder / HEAD_NAME, encoder.shape)


def load_encoder(folder: Path) -> Encoder:
    """What `save_encoder` wrote, in evaluation mode.

    Raises:
        EdgestillError: other tensors than the config and the head want.
    """
    from transformers import AutoConfig, AutoModel

    _quiet()
    shape = manifest.load(HeadShape, folder / HEAD_NAME)
    config = AutoConfig.from_pretrained(folder)
    trunk = AutoModel.from_config(config, dtype=torch.float32, add_pooling_layer=False)
    encoder = Encoder(trunk, shape)
    load_tensors(encoder, load_file(folder / WEIGHTS_NAME), str(folder / WEIGHTS_NAME))
    return encoder.eval()


def load_tensors(encoder: Encoder, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Put tensors by their file names into the model, in place."""
    own = _named(encoder)
    if set(own) != set(tensors):
        raise EdgestillError(f"{where} lacks or adds {sorted(set(own) ^ set(tensors))[:3]}", "train again")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _named(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Parameters by the names that files have: the trunk's own, the head's under `head.`."""
    return {name.removeprefix("trunk."): value for name, value in encoder.named_parameters()}


def _pooling_of(folder: Path) -> Pooling:
    """What sentence-transformers says of the base, in its older or its newer words; cls where it says nothing.

    Raises:
        UsageError: another pooling, or several at once.
    """
    path = folder / "1_Pooling" / "config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    named = [said["pooling_mode"]] if "pooling_mode" in said else []
    flags = [key.removeprefix("pooling_mode_") for key, on in said.items() if key in POOLING_FLAGS and on]
    modes = [SPELLINGS.get(mode, mode) for mode in (*named, *flags)]
    if modes not in ([], ["mean"], ["cls"]):
        raise UsageError(f"{path} pools by {' and '.join(modes)}, supported: mean, cls", "choose another base")
    return "mean" if modes == ["mean"] else "cls"


def _take_pooler(encoder: Encoder, folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for part in ("weight", "bias"):
            found = next((v for k, v in tensors.items() if k.endswith(f"pooler.dense.{part}")), None)
            if found is not None:
                with torch.no_grad():
                    getattr(encoder.head["dense"], part).copy_(found)


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
