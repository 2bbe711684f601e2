"""Recipes, rows and models for tests of white-box losses: a tiny teacher, answers, gradients as the loop makes them."""

import shutil
from pathlib import Path
from typing import Any

import torch

from edgestill.distill.dataset import Row, row_id
from edgestill.distill.student.train import Pair
from edgestill.distill.teacher.protocol import Annotation
from edgestill.distill.white_box.learner import WhiteBoxLearner

TEXTS = ["a tomato", "the long grass behind our house", "moss", "one more cherry on the cake", "is this a frog?"]
LABELS = ["red", "green", "green", "red", "green"]


def tiny_model(like: Path, folder: Path, seed: int, **sizes: int) -> Path:
    """A two-layer Llama folder with the files of the tokenizer of another; `sizes` are of its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig.from_pretrained(like, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(like / name, folder / name)
    return folder


def white_box_recipe(folder: Path, base: Path, teacher: Path, white_box: str, **keys: str) -> Path:
    """A recipe file; `keys`: priming of the teacher, epochs, further keys of train and of task."""
    train = f"epochs: {keys.get('epochs', '3')}, learning_rate: 0.01, batch_rows: 4, precision: float32"
    asked = f"smoke_rows: 0, max_tokens: 24, priming: {keys.get('priming', 'none')}"
    text = f"""
name: white
task: {{kind: classify, instruction: "Which colour?", labels: [red, green]{keys.get("task", "")}}}
data: {{pool: pool.jsonl, test: test.jsonl, gold: gold, dev_fraction: 0.2}}
teacher: {{kind: huggingface, path: {teacher}, {asked}}}
student: {{base: {base}, lora: {{r: 8, alpha: 32}}}}
train: {{{train}, white_box: {white_box}{keys.get("train", "")}}}
"""
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


def pairs(texts: list[str] = TEXTS, labels: list[str] = LABELS) -> list[Pair]:
    """Rows with answers, every other one with a reason."""
    return [
        (
            Row(row_id(text), text, None, "train"),
            Annotation(row_id(text), label, None, f"{label} is what it is" if i % 2 else None, 1, 1, None, ""),
        )
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


Made = tuple[WhiteBoxLearner, list[Any]]


def gradients(learner: Any, rows: list[Any], size: int, step: int = 3) -> tuple[float, torch.Tensor]:
    """(loss, all gradients) of a batch in passes of so many rows, seeded as the loop does in a step."""
    total, mass = 0.0, learner.mass(rows)
    for number, start in enumerate(range(0, len(rows), size)):
        torch.manual_seed((7 << 40) + (step << 12) + number)
        loss, _ = learner.loss(rows[start : start + size], mass)
        loss.backward()
        total += loss.item()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters]
    for parameter in learner.parameters:
        parameter.grad = None
    return total, torch.cat([gradient.reshape(-1) for gradient in found])
