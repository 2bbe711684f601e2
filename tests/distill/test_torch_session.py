"""The torch session: a rewound cache gives the logits of a forward pass over the whole sequence."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgestill.distill.torch_session import TorchSession


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


def whole(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy())


def test_logits_after_a_rewind_are_those_of_a_fresh_forward_pass(model: Any) -> None:
    rng = random.Random(0)
    session = TorchSession(model, 64)
    ids = [rng.randrange(49152) for _ in range(12)]
    walks = [ids, ids[:5], [*ids[:5], 9, 8, 7], [*ids[:7], 3], ids, ids, [4, *ids], ids[:1], [*ids[:11], 1, 2, 3]]
    for walk in walks:
        found = session.logits(walk)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, whole(model, walk), rtol=1e-4, atol=1e-4)


def test_an_id_outside_the_vocabulary_breaks_one_call_and_not_the_next(model: Any) -> None:
    session = TorchSession(model, 64)
    session.logits([5, 6, 7])
    with pytest.raises(IndexError):
        session.logits([5, 6, 49152])
    np.testing.assert_allclose(session.logits([5, 6, 7, 1]), whole(model, [5, 6, 7, 1]), rtol=1e-4, atol=1e-4)


def test_a_result_is_not_overwritten_by_the_next_call(model: Any) -> None:
    session = TorchSession(model, 64)
    first = session.logits([5, 6, 7])
    kept = first.copy()
    session.logits([5, 6, 8])
    assert np.array_equal(first, kept)
