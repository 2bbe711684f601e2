"""Packing is layout only: loss and gradients are those of separate sequences; and the loss itself, by hand."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from edgestill.distill.student.objectives import label_rationale_loss
from edgestill.distill.student.packing import Branch, Example, Packed, answer_shares, pack, packed_tokens, trunk_length

WEIGHT = 0.3
VOCABULARY = 49152


def ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCABULARY) for _ in range(count))


def row(seed: int, trunk: int, rests: tuple[int, ...], answers: tuple[int, ...]) -> Example:
    """One row with random ids: `trunk` shared tokens, then a rest and an answer of these lengths for each branch."""
    rng = random.Random(seed)
    shared = ids(rng, trunk)
    branches = [Branch((*shared, *ids(rng, r)), ids(rng, a)) for r, a in zip(rests, answers, strict=True)]
    return Example(branches[0], branches[1] if len(branches) > 1 else None)


EXAMPLES = [
    row(1, 9, (2, 2), (2, 11)),
    row(2, 5, (2,), (3,)),
    row(3, 0, (4, 6), (1, 5)),
    row(4, 7, (0, 3), (2, 4)),
    row(5, 7, (3, 0), (1, 1)),
    row(6, 1, (1, 1), (2, 2)),
    Example(Branch(ids(random.Random(7), 6), ids(random.Random(8), 9), reason=6, even=True), None),  # a chain
]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, attn_implementation="sdpa").eval()


def packed_loss(model: Any, packed: Packed) -> torch.Tensor:
    """The layout alone: the model is transformers' own, and so is its attention."""
    hidden = model.model(
        input_ids=packed.ids, position_ids=packed.positions, attention_mask=visible(packed)[None, None], use_cache=False
    ).last_hidden_state
    losses = cross_entropy(model.lm_head(hidden[0, packed.sources]), packed.targets, reduction="none")
    return label_rationale_loss(losses, packed, WEIGHT)[0]


def visible(packed: Packed) -> torch.Tensor:
    """(T, T) bool."""
    whole = torch.zeros(packed.ids.shape[1], packed.ids.shape[1], dtype=torch.bool)
    for block in packed.blocks:
        whole[block.start : block.end, block.start : block.end] = ~block.hidden
    return whole


def separate_loss(model: Any, examples: list[Example]) -> torch.Tensor:
    """Every branch as a sequence of its own, without padding, mask or positions."""
    losses: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for example in examples:
        for task, branch in enumerate(example.branches):
            whole = torch.tensor([[*branch.prompt, *branch.completion]])
            logits = model(input_ids=whole[:, :-1], use_cache=False).logits[0, len(branch.prompt) - 1 :]
            found = cross_entropy(logits, whole[0, len(branch.prompt) :], reduction="none")
            losses[1].append(found if task == 1 else found[: branch.reason])
            answer = found[branch.reason :]
            shares = torch.ones(len(answer)) if branch.even else torch.tensor(answer_shares(len(answer)))
            losses[0] += [answer * shares] if task == 0 else []
    label, reason = (torch.cat(losses[task]).mean() for task in (0, 1))
    return (1 - WEIGHT) * label + WEIGHT * reason


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_loss_and_gradients_of_a_packed_batch_are_those_of_separate_sequences(model: Any) -> None:
    packed, separate = packed_loss(model, pack(EXAMPLES)), separate_loss(model, EXAMPLES)
    assert packed.item() == pytest.approx(separate.item(), rel=1e-6)
    found, wanted = gradients(model, packed), gradients(model, separate)
    assert len(wanted) == 2 * 9 + 2
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 1e-6, name
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_rows_in_another_order_have_the_same_loss(model: Any) -> None:
    with torch.no_grad():
        wanted = packed_loss(model, pack(EXAMPLES)).item()
        for seed in range(3):
            order = random.Random(seed).sample(EXAMPLES, len(EXAMPLES))
            assert packed_loss(model, pack(order)).item() == pytest.approx(wanted, rel=1e-6)


def test_a_row_does_not_see_its_neighbours(model: Any) -> None:
    with torch.no_grad():
        alone = packed_loss(model, pack([EXAMPLES[0]])).item()
        assert packed_loss(model, pack([EXAMPLES[0]] * 3)).item() == pytest.approx(alone, rel=1e-6)


def visible_to(packed: Packed) -> Iterator[list[int]]:
    for line in visible(packed):
        yield line.nonzero().flatten().tolist()


def test_the_layout_of_two_small_rows_is_this() -> None:
    one = Example(Branch((10, 11, 12), (13, 14)), Branch((10, 11, 20), (21, 22)))
    two = Example(Branch((30,), (31, 2)), None)
    packed = pack([one, two])
    assert packed.ids.tolist() == [[10, 11, 12, 13, 20, 21, 30, 31]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3, 0, 1]]
    assert list(visible_to(packed)) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [6], [6, 7]]
    assert packed.sources.tolist() == [2, 3, 4, 5, 6, 7]
    assert packed.targets.tolist() == [13, 14, 21, 22, 31, 2]
    assert packed.tasks.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(("example", "length"), list(zip(EXAMPLES, (9, 7, 0, 7, 7, 1, 6), strict=True)), ids=range(7))
def test_the_trunk_is_what_all_prompts_share_and_the_whole_prompt_of_a_single_branch(
    example: Example, length: int
) -> None:
    assert trunk_length(example) == length


def test_the_tokens_of_a_packed_batch_are_known_beforehand() -> None:
    for example in EXAMPLES:
        assert packed_tokens(example) == pack([example]).ids.shape[1]
    assert sum(map(packed_tokens, EXAMPLES)) == pack(EXAMPLES).ids.shape[1]


def test_half_of_a_labels_loss_is_at_its_first_token() -> None:
    assert [answer_shares(count) for count in (1, 2, 3, 5)] == [[1], [1, 1], [1.5, 0.75, 0.75], [2.5, *[0.625] * 4]]


def layout(tasks: list[int], weights: list[float] | None = None) -> Packed:
    nothing, none = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    targets, kinds = torch.zeros(len(tasks), dtype=torch.long), torch.tensor(tasks)
    counts = torch.tensor(weights or [1.0] * len(tasks))
    return Packed(nothing, nothing, (), nothing, targets, kinds, counts, none, none, nothing)


def losses_of(*chances: float) -> torch.Tensor:
    """One position a chance: the target has just that probability."""
    return -torch.tensor(chances).log()


def test_the_loss_is_the_weighted_mean_of_each_tasks_own_mean() -> None:
    loss, parts = label_rationale_loss(losses_of(0.5, 0.25, 0.125, 0.5), layout([0, 1, 1, 1]), 0.25)
    label, reason = math.log(2), (2 + 3 + 1) / 3 * math.log(2)
    assert loss.item() == pytest.approx(0.75 * label + 0.25 * reason)
    assert parts.tolist() == pytest.approx([label, reason])
    assert not parts.requires_grad


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9])
def test_a_batch_without_reasons_has_the_label_loss_alone(weight: float) -> None:
    loss, parts = label_rationale_loss(losses_of(0.5, 0.125), layout([0, 0]), weight)
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert parts[0] == pytest.approx(loss.item())
    assert parts[1].isnan()
