"""Tiny teachers with the tiny base's tokenizer, and students that learn from them, in float32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from white_runs import Made, pairs, tiny_model, white_box_recipe

from edgestill.distill.plan import make_plan
from edgestill.distill.white_box.learner import WhiteBoxLearner


@pytest.fixture(scope="session")
def other_teacher(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider, deeper, and with more logits than tokens."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "vocab_size": 49_152 + 64}
    return tiny_model(tiny_base, tmp_path_factory.mktemp("teacher"), 5, **sizes)


@pytest.fixture
def made(tiny_base: Path, tmp_path: Path) -> Callable[..., Made]:
    """(a learner with its adapter shaken, its prepared rows); without `teacher` the base teaches itself."""

    def make(white_box: str, teacher: Path | None = None, shake: float = 0.02, **keys: str) -> Made:
        plan = make_plan(white_box_recipe(tmp_path, tiny_base, teacher or tiny_base, white_box, **keys)).students[0]
        torch.manual_seed(0)
        learner = WhiteBoxLearner(plan.recipe, plan.base, plan.task, plan.tokenizer)
        learner.model.eval()
        with torch.no_grad():
            for parameter in learner.trained:  # LoRA starts at zero, where half of its gradients vanish
                parameter.add_(torch.randn_like(parameter) * shake)
        return learner, [learner.prepare(row.text, answer, 1.0 + i) for i, (row, answer) in enumerate(pairs())]

    return make
