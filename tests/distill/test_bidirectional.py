"""An encoder in training: packed rows are padded rows, and everything but the word vectors learns."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgestill.distill.plan import make_plan
from edgestill.distill.student.attention import BLOCK_TOKENS
from edgestill.distill.student.bidirectional import EncoderLearner, TextRow
from edgestill.distill.student.encoder import Encoder, HeadShape, _pooling_of
from edgestill.distill.student.loop import Training
from edgestill.runtime.errors import UsageError

LABELS = 3
WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("bert", "cls"), ("roberta", "cls")])
def test_logits_and_gradients_of_packed_rows_are_those_of_padded_rows(family: str, pooling: Any) -> None:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    sizes = {"vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = AutoConfig.for_model(family, **sizes, intermediate_size=32, pad_token_id=1)
    trunk = AutoModel.from_config(copy.deepcopy(config), add_pooling_layer=False)
    packed = Encoder(trunk, HeadShape(pooling, LABELS)).eval()
    padded = AutoModel.from_config(config, add_pooling_layer=False, attn_implementation="eager").eval()
    for p in packed.parameters():
        torch.nn.init.normal_(p, std=0.2)
    padded.load_state_dict(packed.trunk.state_dict())
    lengths = (5, 90, 60, 2, 31)
    assert sum(lengths) > BLOCK_TOKENS
    rows = [torch.randint(2, 99, (n,)).tolist() for n in lengths]
    ids, mask = torch.ones(len(rows), max(lengths), dtype=torch.long), torch.zeros(len(rows), max(lengths))
    for line, row in enumerate(rows):
        ids[line, : len(row)], mask[line, : len(row)] = torch.tensor(row), 1
    hidden = padded(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    wanted, found = packed.classify(mean if pooling == "mean" else hidden[:, 0]), packed(rows)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    wanted.square().sum().backward()
    own = dict(packed.trunk.named_parameters())
    for name, p in padded.named_parameters():
        if name.endswith("key.bias"):  # moves all scores of a token alike: its gradient is zero
            continue
        assert p.grad.abs().max() > 1e-6, name
        assert (own[name].grad - p.grad).abs().max() <= 2e-5 * p.grad.abs().max(), name


def test_full_tuning_leaves_the_word_vectors_and_nothing_else(tiny_recipes: dict[str, Path]) -> None:
    plan = make_plan(tiny_recipes["encoder"]).students[0]
    learner = EncoderLearner(plan.recipe, plan.base, plan.task, plan.tokenizer)
    still = {name for name, p in learner.model.trunk.named_parameters() if not p.requires_grad}
    assert still == {WORDS}
    assert len(learner.parameters) == len(list(learner.model.parameters())) - 1


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_fresh_head_learns_ten_times_as_fast_as_the_trunk(tiny_recipes: dict[str, Path], tuning: Any) -> None:
    plan = make_plan(tiny_recipes["encoder"]).students[0]
    recipe = plan.recipe.alone(plan.recipe.the_student.model_copy(update={"tuning": tuning}))
    train = recipe.train.model_copy(update={"epochs": 1.0, "batch_rows": 1, "learning_rate": 1e-4})
    learner = EncoderLearner(recipe, plan.base, plan.task, plan.tokenizer)
    head = {id(p) for p in learner.model.head.parameters()}
    before = [p.detach().clone() for p in learner.parameters]
    Training[TextRow](learner, [TextRow((101, 7, 8, 102), (0.0, 1.0))], train).run()
    # AdamW's first step moves every weight that has a gradient by its rate
    steps: dict[bool, float] = {}
    for parameter, old in zip(learner.parameters, before, strict=True):
        moved = float((parameter.detach() - old).abs().max())
        steps[id(parameter) in head] = max(moved, steps.get(id(parameter) in head, 0.0))
    assert steps[False] > 0
    assert steps[True] == pytest.approx(10 * steps[False], rel=1e-3)


def test_lora_trains_the_head_and_slivers(tiny_recipes: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    plan = make_plan(tiny_recipes["encoder"]).students[0]
    recipe = plan.recipe.alone(plan.recipe.the_student.model_copy(update={"tuning": "lora"}))
    learner = EncoderLearner(recipe, plan.base, plan.task, plan.tokenizer)
    names = [name for name, p in learner.model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name or name.startswith("head.") for name in names)
    row = TextRow((101, 7, 8, 102), (0.0, 1.0))
    learner.loss([row], (1.0, 0.0))[0].backward()
    with torch.no_grad():
        for p in learner.parameters:
            p -= 0.5 * p.grad if p.grad is not None else 0
            p += 0.01
    learner.model.eval()
    before = learner.logits([row.ids])
    learner.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not [name for name in saved if "lora" in name]
    torch.testing.assert_close(learner.logits([row.ids]), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        (None, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "lasttoken, supported: mean, cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean and max_tokens"),
        ({"pooling_mode": "max"}, "max, supported"),
    ],
)
def test_the_pooling_is_what_the_base_was_made_for_or_is_refused(tmp_path: Path, said: Any, pooling: str) -> None:
    if said is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said), encoding="utf-8")
    if pooling in ("mean", "cls"):
        assert _pooling_of(tmp_path) == pooling
    else:
        with pytest.raises(UsageError, match=pooling):
            _pooling_of(tmp_path)


def test_a_base_of_the_other_kind_is_refused_by_its_kind(tiny_recipes: dict[str, Path], tiny_base: Path) -> None:
    encoder = tiny_recipes["encoder"]
    sections = yaml.safe_load(encoder.read_text(encoding="utf-8"))
    as_decoder = encoder.with_name("as-decoder.yaml")
    as_decoder.write_text(
        yaml.safe_dump(sections | {"student": {"base": sections["student"]["base"]}}), encoding="utf-8"
    )
    with pytest.raises(UsageError, match=r"is an encoder \(bert\), and student\.kind is causal - write kind: encoder"):
        make_plan(as_decoder)
    as_encoder = encoder.with_name("as-encoder.yaml")
    student = {"base": str(tiny_base), "kind": "encoder"}
    as_encoder.write_text(yaml.safe_dump(sections | {"student": student}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"is a llama, and student\.kind encoder wants bert, .* - write kind: causal"):
        make_plan(as_encoder)
