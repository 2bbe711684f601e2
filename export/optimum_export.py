"""Sequence-to-sequence models, such as T5, as ONNX files by optimum's exporter: the one thing that only it covers.

Writes float32 and no bundle; our own students are written by `pack`. optimum-onnx 0.1 wants a transformers that our
[build] extra cannot live with, so that this runs in an environment of its own.
"""

import dataclasses
import importlib.metadata
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.runtime.errors import EdgestillError, GateFailed, MissingPackage, UsageError

INSTALL = "python3 -m venv .venv-optimum && .venv-optimum/bin/pip install torch==2.13.0 'edgestill[optimum]'"
TASK = "text2text-generation"
# float32 in another order of sums; optimum's own bound for T5 is 1e-3 too, and where it fails it only warns
MAX_LOGIT_DIFFERENCE = 1e-3
PROBE_TOKENS = 12


@dataclasses.dataclass(frozen=True)
class OptimumExport:
    """What was written: bytes by file name, and how far onnxruntime's logits are from torch's at most."""

    model_type: str
    files_bytes: dict[str, int]
    max_logit_difference: float


def export_seq2seq(model: Path, folder: Path) -> OptimumExport:
    """Write encoder and decoder of a sequence-to-sequence model in `model` as ONNX files into the new `folder`.

    Raises:
        MissingPackage: this environment has no optimum-onnx, or a transformers that it cannot use.
        UsageError: no such model there, or `folder` exists.
        GateFailed: onnxruntime does not compute what torch does; nothing is left in `folder`.
        EdgestillError: the model cannot be loaded, or not be written.
    """
    config = _read_config(model)
    if folder.exists():
        raise UsageError(f"{folder} exists already", "name a new folder with --out")
    _check_environment()
    _check_family(config["model_type"])
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _run_optimum(model, partial)
        difference = _max_logit_difference(model, partial)
        if not difference <= MAX_LOGIT_DIFFERENCE:
            raise GateFailed(f"logits of onnxruntime and torch differ by {difference:.2g}", "report this as a bug")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files_bytes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return OptimumExport(config["model_type"], files_bytes, difference)


def _read_config(model: Path) -> dict[str, Any]:
    try:
        config = dict(json.loads((model / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise UsageError(f"{model} has no config.json that can be read", "name a folder of a model") from None
    if not config.get("is_encoder_decoder") or "model_type" not in config:
        kind = config.get("model_type")
        raise UsageError(
            f"{model} holds a {kind} model, wanted sequence-to-sequence", "edgestill export writes students"
        )
    return config


def _check_environment() -> None:
    try:
        optimum, found = (importlib.metadata.version(name) for name in ("optimum-onnx", "transformers"))
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPackage(
            f"the package {error.name} is needed here and not installed; it has an environment of its own",
            f"type: {INSTALL}",
        ) from None
    if tuple(int(part) for part in found.split(".")[:2]) >= (4, 58):
        raise MissingPackage(
            f"transformers {found} is installed, optimum-onnx {optimum} wants one below 4.58", f"type: {INSTALL}"
        )


def _check_family(model_type: str) -> None:
    import optimum.exporters.onnx.model_configs  # noqa: F401 - registers what can be written
    from optimum.exporters.tasks import TasksManager

    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    except KeyError:
        tasks = {}
    if f"{TASK}-with-past" not in tasks:
        raise UsageError(f"optimum-onnx writes no {model_type} model that reads and writes text")


def _run_optimum(model: Path, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer speaks about each Python number it meets
        try:
            main_export(str(model), str(folder), task=f"{TASK}-with-past", local_files_only=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise EdgestillError(f"optimum could not write {model}: {error}") from error


def _max_logit_difference(model: Path, folder: Path) -> float:
    """Largest difference of a logit (V of the last of T decoder tokens) for one row of seeded random token ids."""
    import onnxruntime
    import torch
    from transformers import AutoModelForSeq2SeqLM

    loaded = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    draw = np.random.default_rng(0)
    read, written = (draw.integers(3, loaded.config.vocab_size, (1, PROBE_TOKENS)) for _ in range(2))
    with torch.inference_mode():
        wanted = loaded(input_ids=torch.from_numpy(read), decoder_input_ids=torch.from_numpy(written)).logits.numpy()
    encoder, decoder = (
        onnxruntime.InferenceSession(folder / f"{name}_model.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    )
    mask = np.ones_like(read)
    states = encoder.run(["last_hidden_state"], {"input_ids": read, "attention_mask": mask})[0]
    feeds = {"input_ids": written, "encoder_hidden_states": states, "encoder_attention_mask": mask}
    found = decoder.run(["logits"], feeds)[0]
    return float(np.abs(found - wanted).max())
