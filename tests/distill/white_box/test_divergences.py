"""Divergences: the naive formulas and their gradients, limits, bounds, and 0 between equal models."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgestill.distill.white_box.divergences import (
    HEAD_ROWS,
    Whole,
    by_logits,
    forward_kl,
    head_divergences,
    joined,
    jsd,
    measure_of,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
)
from edgestill.distill.white_box.section import WhiteBoxSection
from edgestill.distill.white_box.teacher_logits import TopK, top_k

A, B = 0.3, 0.7


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


NAIVE: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "forward_kl": ({}, kl),
    "reverse_kl": ({}, lambda p, q: kl(q, p)),
    "jsd": ({"beta": B}, lambda p, q: B * kl(p, B * p + (1 - B) * q) + (1 - B) * kl(q, B * p + (1 - B) * q)),
    "skew_kl": ({"alpha": A}, lambda p, q: kl(p, A * p + (1 - A) * q)),
    "skew_reverse_kl": ({"alpha": A}, lambda p, q: kl(q, (1 - A) * p + A * q)),
}
KINDS = pytest.mark.parametrize("kind", NAIVE)


def section(kind: str, **more: Any) -> WhiteBoxSection:
    return WhiteBoxSection(divergence=kind, **NAIVE[kind][0], **more)


def logits(seed: int, rows: int = 7, vocabulary: int = 11, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    told = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, vocabulary, generator=told, dtype=dtype) * 3 for _ in range(2))  # type: ignore


@KINDS
@pytest.mark.parametrize("count", [None, 3, 11])
def test_value_and_gradient_are_those_of_the_naive_formula_in_float64(kind: str, count: int | None) -> None:
    theirs, ours = logits(1)
    ours.requires_grad_()
    p, q = theirs.softmax(-1), ours.softmax(-1)
    ids = None if count is None else p.topk(count).indices
    if ids is not None and count != 11:
        p, q = (torch.cat([s.gather(-1, ids), 1 - s.gather(-1, ids).sum(-1, keepdim=True)], -1) for s in (p, q))
    naive = NAIVE[kind][1](p, q)
    (wanted,) = torch.autograd.grad(naive.sum(), ours)
    log_p, log_q = theirs.log_softmax(-1), ours.detach().log_softmax(-1)
    seen = (log_p, log_q) if ids is None else (joined(log_p, ids), joined(log_q, ids))
    found, slope = measure_of(section(kind))(*seen)
    torch.testing.assert_close(found, naive.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(by_logits(log_q, slope, ids), wanted, rtol=1e-9, atol=1e-10)


@KINDS
@pytest.mark.parametrize("count", [None, 5])
def test_over_several_chunks_with_a_temperature_it_is_the_plain_formula(kind: str, count: int | None) -> None:
    told = torch.Generator().manual_seed(3)
    rows, temperature = 2 * HEAD_ROWS + 9, 2.5
    hidden, wanted = torch.randn(rows, 8, generator=told), torch.randn(rows, 8, generator=told)
    head, other, along = (torch.randn(size, generator=told) for size in ((40, 8), (40, 8), (rows,)))
    whole = Whole(wanted, other, temperature)
    teacher = whole if count is None else top_k(wanted, other, count, temperature)
    ours = hidden.clone().requires_grad_()
    found = head_divergences(ours, head, teacher, measure_of(section(kind)), temperature)
    (found * along).sum().backward()
    plain = hidden.double().requires_grad_()
    p = (wanted.double() @ other.double().t() / temperature).softmax(-1)
    q = (plain @ head.double().t() / temperature).softmax(-1)
    if count is not None:
        ids = p.topk(count).indices
        p, q = (torch.cat([s.gather(-1, ids), 1 - s.gather(-1, ids).sum(-1, keepdim=True)], -1) for s in (p, q))
    naive = NAIVE[kind][1](p, q) * temperature**2
    (naive * along.double()).sum().backward()
    torch.testing.assert_close(found.detach().double(), naive.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-3, atol=1e-4)


@KINDS
@pytest.mark.parametrize("count", [None, 4, 30])
def test_identical_models_are_apart_by_nothing_and_pull_nowhere(kind: str, count: int | None) -> None:
    told = torch.Generator().manual_seed(4)
    hidden, head = torch.randn(20, 8, generator=told), torch.randn(30, 8, generator=told) * 2
    teacher = Whole(hidden, head) if count is None else top_k(hidden, head, count, 1.0)
    ours = hidden.clone().requires_grad_()
    found = head_divergences(ours, head, teacher, measure_of(section(kind)), 1.0)
    found.sum().backward()
    assert found.abs().max() < 1e-6
    assert ours.grad.abs().max() < 1e-5


@KINDS
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_it_is_never_negative_and_joining_tokens_never_makes_it_larger(kind: str, seed: int) -> None:
    theirs, ours = logits(seed)
    measure, p, q = measure_of(section(kind)), theirs.log_softmax(-1), ours.log_softmax(-1)
    bounds = [measure(joined(p, ids), joined(q, ids))[0] for ids in (p.topk(count).indices for count in range(1, 12))]
    whole, _ = measure(p, q)
    assert (bounds[0] >= -1e-12).all()
    for fewer, more in itertools.pairwise(bounds):
        assert (fewer <= more + 1e-9).all()
    torch.testing.assert_close(bounds[-1], whole, rtol=1e-9, atol=1e-9)  # K is the vocabulary
    assert (bounds[2] < whole - 1e-6).any()  # and the bound is not always tight


def test_the_limits_that_the_papers_name() -> None:
    p, q = (z.log_softmax(-1) for z in logits(5))
    forward, backward, small = forward_kl(p, q)[0], reverse_kl(p, q)[0], 1e-7
    torch.testing.assert_close(jsd(p, q, small)[0] / small, forward, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(jsd(p, q, 1 - small)[0] / small, backward, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(jsd(p, q, 0.5)[0], jsd(q, p, 0.5)[0])  # the symmetric one
    torch.testing.assert_close(skew_kl(p, q, 0.0)[0], forward)
    torch.testing.assert_close(skew_reverse_kl(p, q, 0.0)[0], backward)
    assert not torch.allclose(forward, backward, rtol=1e-2)


@KINDS
def test_a_student_that_is_certain_of_something_else_gives_finite_numbers(kind: str) -> None:
    hidden, wanted = torch.full((1, 1), 300.0, requires_grad=True), torch.full((1, 1), -300.0)
    head = torch.linspace(-1, 1, 12)[:, None]
    for teacher in (Whole(wanted, head), top_k(wanted, head, 3, 1.0)):
        found = head_divergences(hidden, head, teacher, measure_of(section(kind)), 1.0)
        (gradient,) = torch.autograd.grad(found.sum(), hidden)
        assert found.isfinite().all()
        assert gradient.isfinite().all()


def test_no_logits_of_all_positions_are_kept() -> None:
    told = torch.Generator().manual_seed(6)
    rows, vocabulary = 5 * HEAD_ROWS, 4000
    hidden, head = torch.randn(rows, 8, generator=told, requires_grad=True), torch.randn(vocabulary, 8, generator=told)
    kept: list[int] = []

    def noted(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        head_divergences(hidden, head, Whole(hidden.detach() + 1, head), forward_kl, 1.0)
    assert kept == [hidden.numel()]


def test_top_k_takes_the_likeliest_tokens_and_all_shares_sum_to_one() -> None:
    told = torch.Generator().manual_seed(7)
    hidden, head = torch.randn(HEAD_ROWS + 5, 6, generator=told), torch.randn(50, 6, generator=told)
    shares = (hidden @ head.t() / 1.7).softmax(-1)
    found = top_k(hidden, head, 8, 1.7)
    assert found.ids.dtype == torch.int32
    assert found.logs.shape == (len(hidden), 9)
    torch.testing.assert_close(found.logs.exp().sum(-1), torch.ones(len(hidden)))
    torch.testing.assert_close(found.logs[:, :8].exp(), shares.topk(8).values)
    parts = found.split([5, len(hidden) - 5])
    assert isinstance(parts[1], TopK)
    assert torch.equal(parts[1].ids, found.ids[5:])
    assert top_k(hidden, head, 200, 1.0).logs.shape == (len(hidden), 50)  # no more than there are
