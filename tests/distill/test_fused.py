"""The rewired model computes what transformers and peft compute, padded and row by row: losses, gradients, outputs."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from edgestill.distill.student.attention import BLOCK_TOKENS, Block, blocks_of, packed_attention, use_packed_attention
from edgestill.distill.student.fused import fuse
from edgestill.distill.student.objectives import label_rationale_loss, token_losses
from edgestill.distill.student.packing import Branch, Example, Packed, pack

WEIGHT, VOCABULARY, RANK, WINDOW = 0.3, 97, 4, 16
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip


def examples() -> list[Example]:
    """Rows from 9 to 110 tokens: together several blocks."""
    told = torch.Generator().manual_seed(5)
    ids = lambda count: tuple(torch.randint(VOCABULARY, (count,), generator=told).tolist())  # noqa: E731
    rows = []
    for trunk, answer, reason in ((4, 2, 3), (60, 1, 49), (7, 3, 0), (40, 2, 30), (5, 1, 8)):
        shared = ids(trunk)
        label = Branch((*shared, 1, 2), ids(answer))
        rows.append(Example(label, Branch((*shared, 3), ids(reason)) if reason else None))
    return rows


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def with_lora(family: str) -> Any:
    """A small random model of a family with an adapter that does something, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **FAMILIES[family]))
    from_zero = family == "gemma3_text"  # whose norms multiply by 1 + weight
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=1.0 if name.endswith("norm.weight") and not from_zero else 0.0, std=0.15)
    config = LoraConfig(r=RANK, lora_alpha=7, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.2)
    return model


def plain_loss(model: Any, rows: list[Example]) -> torch.Tensor:
    """Every branch a padded sequence of its own: transformers' mask, peft's products, a softmax over everything."""
    branches = [(task, branch) for row in rows for task, branch in enumerate(row.branches)]
    longest = max(len(b.prompt) + len(b.completion) for _, b in branches)
    ids = torch.zeros(len(branches), longest, dtype=torch.long)
    wanted, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for line, (_, branch) in enumerate(branches):
        whole = torch.tensor([*branch.prompt, *branch.completion])
        ids[line, : len(whole)], mask[line, : len(whole)] = whole, 1
        wanted[line, len(branch.prompt) : len(whole)] = whole[len(branch.prompt) :]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), wanted[:, 1:], reduction="none")
    for line, (task, branch) in enumerate(branches):
        if task == 0 and len(branch.completion) > 1:  # half of a label's loss is at its first token
            first, count = len(branch.prompt) - 1, len(branch.completion)
            losses[line, first + 1 :] *= count / 2 / (count - 1)
            losses[line, first] *= count / 2
    means = []
    for task in (0, 1):
        lines = [line for line, (which, _) in enumerate(branches) if which == task]
        means.append(losses[lines].sum() / (wanted[lines] >= 0).sum())
    return (1 - WEIGHT) * means[0] + WEIGHT * means[1]


def fast_loss(model: Any, packed: Packed) -> torch.Tensor:
    causal = model.base_model.model
    hidden = causal.model(input_ids=packed.ids, position_ids=packed.positions, blocks=packed.blocks, use_cache=False)
    losses = token_losses(hidden.last_hidden_state[0, packed.sources], causal.lm_head.weight, packed)
    return label_rationale_loss(losses, packed, WEIGHT)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_padded_rows_through_transformers_and_peft(family: str) -> None:
    plain = with_lora(family)
    fast = copy.deepcopy(plain)
    use_packed_attention(fast)
    trained = fuse(fast, torch.float32)
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in plain.parameters() if p.requires_grad)
    wanted, packed = plain_loss(plain, examples()), pack(examples())
    assert len(packed.blocks) > 1
    found = fast_loss(fast, packed)
    assert found.item() == pytest.approx(wanted.item(), rel=2e-6)
    wanted.backward()
    found.backward()
    # the adapter's own parameters are views: so are their gradients once laid over them
    names = [name for name, p in plain.named_parameters() if p.requires_grad]
    own = dict(fast.named_parameters())
    flat = {p.data_ptr() + i * 4: g for p in trained for i, g in enumerate(p.grad.reshape(-1).tolist())}
    for name in names:
        gradient = dict(plain.named_parameters())[name].grad
        start = own[name].data_ptr()
        mine = torch.tensor([flat[start + 4 * i] for i in range(gradient.numel())]).view_as(gradient)
        assert gradient.abs().max() > 1e-6, name
        assert (mine - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


def test_a_changed_adapter_is_what_the_next_pass_uses_and_what_is_saved(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    fast = with_lora("llama")
    use_packed_attention(fast)
    trained = fuse(fast, torch.float32)
    packed = pack(examples())
    with torch.no_grad():
        before = fast_loss(fast, packed).item()
        for p in trained:
            p.mul_(1.5)
        after = fast_loss(fast, packed).item()
    assert after != pytest.approx(before, rel=1e-3)
    fast.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    plain = with_lora("llama")
    for name, p in plain.named_parameters():
        if "lora_" in name:
            p.data.copy_(saved[name.replace(".default", "")])
    assert plain_loss(plain, examples()).item() == pytest.approx(after, rel=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_rounds_where_transformers_rounds(family: str) -> None:
    model = with_lora(family).bfloat16()
    norms = [model.base_model.model.model.layers[0].input_layernorm, model.base_model.model.model.norm]
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(6)).bfloat16()
    wanted = [norm(x) for norm in norms]
    fuse(model, torch.bfloat16)
    for norm, exact in zip(norms, wanted, strict=True):
        found = norm(x)
        assert found.dtype == torch.bfloat16
        assert (found != exact).float().mean() < 0.001


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_bfloat16_stays_near_float32(family: str) -> None:
    losses, grads = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = with_lora(family)
        for name, p in model.named_parameters():
            if "lora_" not in name:
                p.data = p.data.to(dtype)
        use_packed_attention(model)
        trained = fuse(model, dtype)
        loss = fast_loss(model, pack(examples()))
        loss.backward()
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in trained)
        losses.append(loss.item())
        grads.append([p.grad.flatten() for p in trained])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for near, exact in zip(*grads, strict=True):
        assert torch.cosine_similarity(near, exact, dim=0) > 0.99


def test_rows_join_into_blocks_until_one_is_full_and_a_long_row_has_its_own() -> None:
    lengths = [50, 70, 9, BLOCK_TOKENS + 30, 1, BLOCK_TOKENS]
    blocks = blocks_of(lengths, lambda here: torch.ones(here.stop - here.start, here.stop - here.start).bool())
    assert [b.end - b.start for b in blocks] == [120, 9, BLOCK_TOKENS + 30, 1, BLOCK_TOKENS]
    assert [b.start for b in blocks] == [0, 120, 129, 129 + BLOCK_TOKENS + 30, 130 + BLOCK_TOKENS + 30]


def test_attention_with_dropout_has_the_gradient_of_its_own_forward() -> None:
    told = torch.Generator().manual_seed(1)
    parts = [torch.randn(1, heads, 7, 3, generator=told, dtype=torch.float64) for heads in (4, 2, 2)]
    hidden = ~torch.ones(4, 4, dtype=torch.bool).tril()
    blocks = (Block(0, 4, hidden), Block(4, 7, hidden[:3, :3]))

    def attend(*parts: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return packed_attention(None, *parts, None, blocks=blocks, scaling=0.7, dropout=0.4)[0]

    for part in parts:
        part.requires_grad_()
    # scores are float32 inside, so the steps of the numeric gradient have to be large
    torch.autograd.gradcheck(attend, parts, eps=1e-2, atol=2e-3)
    torch.manual_seed(0)
    assert (attend(*parts) != packed_attention(None, *parts, None, blocks=blocks, scaling=0.7)[0]).any()


def test_scores_are_not_rounded_to_bfloat16_whoever_asks_for_it() -> None:
    told = torch.Generator().manual_seed(2)
    parts = [torch.randn(1, 2, 30, 16, generator=told).mul(3).bfloat16() for _ in range(3)]
    blocks = (Block(0, 30, torch.zeros(30, 30, dtype=torch.bool)),)
    plain = packed_attention(None, *parts, None, blocks=blocks, scaling=1.0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = packed_attention(None, *parts, None, blocks=blocks, scaling=1.0)[0]
    assert torch.equal(found, plain)
    query, key, value = (part.float() for part in parts)
    exact = ((query @ key.transpose(2, 3)).softmax(-1) @ value).transpose(1, 2)
    assert (plain.float() - exact).abs().max() < 0.01 * exact.abs().max()


def test_a_window_counts_places_in_the_row_not_in_the_pass() -> None:
    """Trunk of 4, a branch of 3 and another of 3 that goes on from the trunk as well."""
    branch = torch.tensor([0] * 4 + [1] * 3 + [2] * 3)
    visible = ((branch[None] == 0) | (branch[:, None] == branch[None])).tril()
    (block,) = blocks_of([10], lambda here: visible[here, here])
    places = torch.tensor([0, 1, 2, 3, 4, 5, 6, 4, 5, 6])
    wanted = visible & (places[:, None] - places[None] < 3)
    assert torch.equal(~block.hidden_beyond(3), wanted)
    assert wanted[7].nonzero().flatten().tolist() == [2, 3, 7]
    assert block.hidden_beyond(7) is block.hidden
    assert block.hidden_beyond(None) is block.hidden


@pytest.mark.parametrize("wish", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"sliding_window": 3}])
def test_attention_refuses_what_it_does_not_do(wish: dict[str, Any]) -> None:
    parts = [torch.zeros(1, heads, 4, 3) for heads in (4, 2, 2)]
    blocks = (Block(0, 4, torch.zeros(4, 4, dtype=torch.bool)),)
    with pytest.raises(NotImplementedError, match="packed attention"):
        packed_attention(None, *parts, None, blocks=blocks, scaling=1.0, **wish)
    packed_attention(None, *parts, None, blocks=blocks, scaling=1.0, sliding_window=4)
