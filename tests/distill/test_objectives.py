"""Soft labels, smoothing and class weights: by hand, and equal to the plain loss where they should be."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from edgestill.distill.student.objectives import (
    HEAD_ROWS,
    class_weights,
    label_rationale_loss,
    soft_target,
    token_losses,
)
from edgestill.distill.student.packing import Branch, Example, pack

VOCABULARY, LABEL_IDS = 50, (3, 7, 11)
NAMES = ["red", "green", "blue"]
HEAD = torch.eye(VOCABULARY)  # hidden states are then the logits


def example(seed: int, label: int, soft: dict[str, float] | None = None, weight: float = 1.0) -> Example:
    rng = random.Random(seed)
    ids = lambda count: tuple(rng.randrange(VOCABULARY) for _ in range(count))  # noqa: E731
    trunk = ids(4)
    shares = None if soft is None else tuple((LABEL_IDS[NAMES.index(name)], share) for name, share in soft.items())
    answer = Branch((*trunk, 40), (LABEL_IDS[label], 2))
    return Example(answer, Branch((*trunk, 41), ids(6)) if seed % 2 else None, shares, weight)


def logits_for(examples: list[Example], seed: int = 0) -> torch.Tensor:
    count = sum(len(branch.completion) for one in examples for branch in one.branches)
    return torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_a_soft_target_that_is_all_on_one_label_is_the_plain_loss_with_its_gradient() -> None:
    hard = [example(seed, seed % 3) for seed in range(5)]
    soft = [example(seed, seed % 3, {name: float(i == seed % 3) for i, name in enumerate(NAMES)}) for seed in range(5)]
    one, two = logits_for(hard), logits_for(soft)
    losses = [
        label_rationale_loss(token_losses(logits, HEAD, pack(rows)), pack(rows), 0.3)[0]
        for logits, rows in ((one, hard), (two, soft))
    ]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert torch.allclose(one.grad, two.grad, atol=1e-7)


def test_a_soft_target_is_the_cross_entropy_with_the_distribution_at_the_labels_first_token_only() -> None:
    shares = {"red": 0.5, "green": 0.3, "blue": 0.2}
    rows = [example(1, 0), example(2, 1, shares), example(3, 2, shares)]
    packed, logits = pack(rows), logits_for(rows).detach()
    plain = cross_entropy(logits, packed.targets, reduction="none")
    found = token_losses(logits, HEAD, packed)
    log_p = logits.log_softmax(-1)
    at = [8, 10]  # row 1 has 2 + 6 positions with loss, row 2 has 2
    for position in range(len(plain)):
        if position in at:
            wanted = -sum(
                share * log_p[position, token] for token, share in zip(LABEL_IDS, shares.values(), strict=True)
            )
            assert found[position].item() == pytest.approx(float(wanted), rel=1e-6)
        else:
            assert found[position].item() == pytest.approx(plain[position].item(), rel=1e-6)


def test_a_row_of_weight_three_is_the_row_three_times() -> None:
    thrice = [example(2, 0), *[example(4, 1)] * 3]
    weighted = [example(2, 0), example(4, 1, weight=3.0)]
    logits = logits_for(weighted)
    repeated = torch.cat([logits[:2], logits[2:], logits[2:], logits[2:]])
    one, three = (
        label_rationale_loss(token_losses(hidden, HEAD, pack(rows)), pack(rows), 0.3)[0].item()
        for hidden, rows in ((logits, weighted), (repeated, thrice))
    )
    assert one == pytest.approx(three, rel=1e-6)


def test_the_heads_loss_over_several_chunks_has_the_value_and_gradient_of_the_plain_one() -> None:
    rows = [example(seed, seed % 3) for seed in range(60)]
    packed, told = pack(rows), torch.Generator().manual_seed(2)
    count = len(packed.targets)
    assert count > 2 * HEAD_ROWS
    hidden, head = torch.randn(count, 16, generator=told), torch.randn(VOCABULARY, 16, generator=told) * 3
    along = torch.randn(count, generator=told)
    grads = []
    for losses in (
        lambda h: token_losses(h, head, packed),
        lambda h: cross_entropy(h @ head.t(), packed.targets, reduction="none"),
    ):
        given = hidden.clone().requires_grad_()
        found = losses(given)
        found.backward(along)
        grads.append((found.detach(), given.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-4, atol=1e-5)


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0.01, 1), min_size=1), st.floats(0.2, 5), st.floats(0, 0.9))
def test_a_soft_target_is_a_distribution(chances: dict[str, float], temperature: float, smoothing: float) -> None:
    found = soft_target("red", chances, NAMES, temperature, smoothing)
    assert found is not None
    assert sum(found.values()) == pytest.approx(1)
    assert all(share >= smoothing / 3 - 1e-12 for share in found.values())


def test_temperature_and_smoothing_do_what_their_papers_say() -> None:
    assert soft_target("red", None, NAMES, 1, 0) is None
    assert soft_target("red", None, NAMES, 3, 0.3) == pytest.approx({"red": 0.8, "green": 0.1, "blue": 0.1})
    chances = {"red": 0.64, "green": 0.36}
    hot = soft_target("red", chances, NAMES, 2, 0)
    assert hot == pytest.approx({"red": 0.8 / 1.4, "green": 0.6 / 1.4, "blue": 0.0})
    assert soft_target("red", chances, NAMES, 1, 0) == pytest.approx({"red": 0.64, "green": 0.36, "blue": 0.0})


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([1.0, 3.0])), min_size=1, max_size=40))
def test_class_weights_have_mean_one_and_balance_the_classes(rows: list[tuple[str, float]]) -> None:
    labels, masses = [label for label, _ in rows], [mass for _, mass in rows]
    for how in ("equal", "sqrt", "balanced"):
        weights = class_weights(labels, how, masses)
        assert sum(weights[label] * mass for label, mass in rows) / sum(masses) == pytest.approx(1)
    balanced = class_weights(labels, "balanced", masses)
    totals = {name: sum(balanced[label] * mass for label, mass in rows if label == name) for name in set(labels)}
    assert all(math.isclose(total, sum(masses) / len(totals)) for total in totals.values())
