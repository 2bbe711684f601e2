"""Whole trainings with a teacher: nearer to it than by its words alone, resumable, the same bytes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from white_runs import pairs, tiny_model, white_box_recipe

from edgestill.distill.base import prepare_base
from edgestill.distill.plan import make_plan
from edgestill.distill.student.causal import CausalRows, load_causal
from edgestill.distill.student.objectives import label_rationale_loss, token_losses
from edgestill.distill.student.packing import pack
from edgestill.distill.student.train import LOSSES_NAME, train_student
from edgestill.distill.white_box.divergences import Whole, forward_kl, head_divergences
from edgestill.distill.white_box.teacher_logits import FOLDER_NAME, MANIFEST_NAME
from edgestill.runtime import manifest

HELD_OUT = ["a ruby", "the lime in my glass", "blood on the floor", "does a frog sleep in moss?"]
FULL = "{weight: 0.5, divergence: jsd, on_policy_fraction: 0.5, on_policy_tokens: 4, features: {pairs: 1}}"


def train(recipe: Path, out: Path, **more: Any) -> Any:
    plan = make_plan(recipe).students[0]
    return train_student(
        plan.recipe, plan.base, plan.task, plan.tokenizer, pairs(), pairs()[:1], out / "adapter", "0f", **more
    )


@torch.no_grad()
def gap_nats(recipe: Path, adapter: Path, teacher: Path) -> float:
    """Mean forward KL of a trained student from its teacher over the answers to held-out rows."""
    from peft import PeftModel

    plan = make_plan(recipe).students[0]
    causal = PeftModel.from_pretrained(load_causal(plan.base, torch.float32), str(adapter)).merge_and_unload()
    theirs = load_causal(prepare_base(str(teacher)), torch.float32)
    parts = [CausalRows(model, plan.recipe, plan.task, plan.tokenizer) for model in (causal, theirs)]
    rows = [parts[0].prepare(row.text, answer, 1.0) for row, answer in pairs(HELD_OUT, ["red", "green"] * 2)]
    hidden, wanted = (part.hidden(pack(rows)) for part in parts)
    count = parts[0].head.shape[0]
    return float(head_divergences(hidden, parts[0].head, Whole(wanted, parts[1].head[:count]), forward_kl, 1.0).mean())


@pytest.fixture(scope="module")
def sure_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with larger logits: those of the common one leave every token about as likely as any other."""
    folder = tiny_model(tiny_base, tmp_path_factory.mktemp("sure"), 0)
    causal = load_causal(prepare_base(str(folder)), torch.float32)
    with torch.no_grad():
        causal.model.norm.weight *= 6
    causal.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def torn_teacher(sure_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after it has learnt to answer any text with one label mostly, and with the other else."""
    folder = tmp_path_factory.mktemp("torn") / "teacher"
    shutil.copytree(sure_base, folder)
    plan = make_plan(white_box_recipe(folder.parent, sure_base, folder, "null")).students[0]
    causal = load_causal(plan.base, torch.float32)
    model = CausalRows(causal, plan.recipe, plan.task, plan.tokenizer)
    rows = [
        model.prepare(row.text, answer, weight)
        for label, weight in (("red", 0.3), ("green", 0.7))
        for row, answer in pairs(labels=[label] * len(pairs()))
    ]
    packed, optimizer = pack(rows), torch.optim.AdamW(causal.model.layers.parameters(), lr=0.003)
    for _ in range(40):
        optimizer.zero_grad()
        label_rationale_loss(token_losses(model.hidden(packed), model.head, packed), packed, 0.3)[0].backward()
        optimizer.step()
    causal.set_attn_implementation("sdpa")
    causal.save_pretrained(folder)
    return folder


def test_a_student_comes_nearer_to_its_teacher_than_by_its_words_in_as_many_steps(
    sure_base: Path, torn_teacher: Path, tmp_path: Path
) -> None:
    gaps, steps = {}, set()
    for name, white_box in (("words", "null"), ("whole", "{top_k: all, weight: 0.9}"), ("top", "{weight: 0.9}")):
        (tmp_path / name).mkdir()
        recipe = white_box_recipe(tmp_path / name, sure_base, torn_teacher, white_box, epochs="6")
        steps.add(train(recipe, tmp_path / name).steps)
        gaps[name] = gap_nats(recipe, tmp_path / name / "adapter", torn_teacher)
    assert len(steps) == 1
    assert gaps["whole"] < 0.85 * gaps["words"], gaps
    assert gaps["top"] < 0.85 * gaps["words"], gaps


def test_distributions_stay_with_the_student_and_are_not_computed_twice(
    tiny_base: Path, other_teacher: Path, tmp_path: Path
) -> None:
    recipe = white_box_recipe(tmp_path, tiny_base, other_teacher, "{top_k: 8}")
    train(recipe, tmp_path)
    folder = tmp_path / FOLDER_NAME
    facts = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert facts["rows"] == len(pairs())
    recipe = white_box_recipe(tmp_path, tiny_base, other_teacher, "{top_k: 8, divergence: reverse_kl, weight: 1}")
    train(recipe, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    train(white_box_recipe(tmp_path, tiny_base, other_teacher, "{top_k: 9}"), tmp_path)
    assert json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["inputs_sha256"] != facts["inputs_sha256"]


@pytest.mark.parametrize("white_box", ["{weight: 0.5}", FULL])
def test_a_stopped_training_ends_with_the_same_bytes(
    tiny_base: Path, other_teacher: Path, tmp_path: Path, white_box: str
) -> None:
    recipe = white_box_recipe(tmp_path, tiny_base, other_teacher, white_box)
    train(recipe, tmp_path / "whole")
    seen = []

    def stopped(done: int, _: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", progress=stopped, checkpoint_s=0.0)
    facts = train(recipe, tmp_path / "stopped")
    assert facts.resumed_at_step == 2
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_passes_do_not_change_what_is_learnt_from_samples(tiny_base: Path, other_teacher: Path, tmp_path: Path) -> None:
    """Also tells whether a row's generator is still found from what the loop seeds torch with."""
    losses = []
    for name, size in (("one", ""), ("many", ", pass_rows: 1")):
        (tmp_path / name).mkdir()
        recipe = white_box_recipe(tmp_path / name, tiny_base, other_teacher, FULL, epochs="1", train=size)
        train(recipe, tmp_path / name)
        lines = manifest.read_jsonl(tmp_path / name / "adapter" / LOSSES_NAME)
        losses.append([line["label_nats"] for line in lines])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_command_trains_with_a_teacher_of_the_recipe(
    tiny_base: Path, tiny_rows: Any, tmp_path: Path, cli: Any
) -> None:
    tiny_rows(tmp_path)
    teacher = tiny_model(tiny_base, tmp_path / "teacher", 9, hidden_size=32)
    settings = {"task": ", rationale: false", "train": ", quantize_aware: false", "epochs": "1"}
    recipe = white_box_recipe(tmp_path, tiny_base, Path(teacher.name), "{weight: 0.5, top_k: 16}", **settings)
    recipe.write_text(recipe.read_text(encoding="utf-8") + "bench: {against: [teacher]}\n", encoding="utf-8")
    for verb in ("annotate", "train"):
        done = cli(verb, recipe, "--out", tmp_path / "run")
        assert done.returncode == 0, done.stderr
    student = tmp_path / "run" / "student"
    run = json.loads((student / "student.json").read_text(encoding="utf-8"))
    assert run["recipe"]["train"]["white_box"]["top_k"] == 16
    assert f"{FOLDER_NAME}/{MANIFEST_NAME}" in run["files"]
    assert (student / "adapter" / "adapter_model.safetensors").is_file()
    before = {path.name: path.stat().st_mtime_ns for path in (student / FOLDER_NAME).iterdir()}
    (student / "left.txt").write_text("", encoding="utf-8")
    edited = recipe.read_text(encoding="utf-8").replace("weight: 0.5, top_k", "weight: 0.9, top_k")
    recipe.write_text(edited, encoding="utf-8")
    done = cli("train", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (student / FOLDER_NAME).iterdir()} == before
    assert not (student / "left.txt").exists()
