"""Attention over packed rows: dense within blocks of a few rows, nothing between blocks. No model, no layout of rows.

A mask over all T tokens of a pass costs T squared although hardly any pair may see each other. Rows lie one after the
other, so a block is a slice and needs no gathering and no padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import dropout as drop
from torch.nn.functional import softmax

NAME = "edgestill_packed"
BLOCK_TOKENS = 128


@dataclass(frozen=True)
class Block:
    """Tokens `start` to `end` of a pass; hidden (N, N) bool, N = end - start: what a token (first) must not see."""

    start: int
    end: int
    hidden: Tensor

    @cached_property
    def _seen(self) -> Tensor:
        """(N,) how many tokens each one sees: in a causal row its place in it, counted from 1."""
        return (~self.hidden).sum(-1)

    def hidden_beyond(self, window: int | None) -> Tensor:
        """`hidden`, and also what lies `window` places back or more in its row.

        Raises:
            NotImplementedError: a row is longer than the window and some token of the block sees a later one.
        """
        if window is None or int(self._seen.max()) <= window:
            return self.hidden
        if (~self.hidden).triu(1).any():
            raise NotImplementedError("packed attention has windows in causal rows only")
        return self.hidden | (self._seen[:, None] - self._seen[None] >= window)


def blocks_of(lengths: Sequence[int], visible: Callable[[slice], Tensor]) -> tuple[Block, ...]:
    """Rows in order, joined until a block has `BLOCK_TOKENS`.

    Args:
        lengths: tokens of each row.
        visible: for the N tokens of a slice (N, N) bool, which of them (first) sees which; nothing across rows.
    """
    ends = [0]
    for length in lengths:
        if len(ends) > 1 and ends[-1] + length - ends[-2] <= BLOCK_TOKENS:
            ends[-1] += length
        else:
            ends.append(ends[-1] + length)
    return tuple(Block(start, end, ~visible(slice(start, end))) for start, end in pairwise(ends))


def use_packed_attention(model: Any) -> None:
    """Let a transformers model attend by `packed_attention`; its forward then wants `blocks`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def packed_attention(
    module: Any,  # noqa: ARG001 - what transformers passes
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,  # noqa: ARG001 - the blocks stand for it
    *,
    blocks: Sequence[Block],
    scaling: float,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention within blocks, in the form that transformers' models call.

    Args:
        query: (1, H, T, D).
        key: (1, K, T, D), H a multiple of K.
        value: (1, K, T, D).
        blocks: of the T tokens.
        scaling: of the scores.
        dropout: share of attention weights dropped.
        more: what else a family asks for; `sliding_window` is how many tokens of its row one sees, itself included.

    Returns:
        (1, T, H, D), and no weights.

    Raises:
        NotImplementedError: a family wants scores capped, sinks, or a window in rows that are not causal.
    """
    if any(more.get(name) is not None for name in ("softcap", "s_aux")):
        raise NotImplementedError("packed attention has no capped scores and no sinks")
    hidden = [block.hidden_beyond(more.get("sliding_window")) for block in blocks]
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast rope leaves them in float32
    with torch.autocast("cpu", enabled=False):  # which would round the scores
        return _PackedAttention.apply(query, key, value, scaling, blocks, hidden, dropout), None


class _PackedAttention(Function):
    """Scores and softmax in float32, for bfloat16 would round a score of 20 by up to 0.06; the rest as it comes."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        blocks: Sequence[Block],
        hidden: Sequence[Tensor],
        dropout: float,
    ) -> Tensor:
        groups = key.shape[1]
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        kept = []
        for block, unseen in zip(blocks, hidden, strict=True):
            q, k, v = (part[0, :, block.start : block.end] for part in (query, key, value))
            size = block.end - block.start
            inner = q.float().mul(scaling).reshape(groups, -1, q.shape[-1])
            scores = torch.bmm(inner, k.float().transpose(1, 2)).view(-1, size, size)
            shares = softmax(scores.masked_fill_(unseen, -torch.inf), -1).to(v.dtype).view(groups, -1, size)
            keep = drop(torch.ones_like(shares), dropout) if dropout else None
            mixed = torch.bmm(shares if keep is None else shares * keep, v).view(-1, size, v.shape[-1])
            out[0, block.start : block.end] = mixed.transpose(0, 1)
            kept += [shares, keep]
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scaling, ctx.blocks = scaling, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        query, key, value, *kept = ctx.saved_tensors
        (dout,) = grads
        groups = key.shape[1]
        dquery, dkey, dvalue = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for place, block in enumerate(ctx.blocks):
            shares, keep = kept[2 * place : 2 * place + 2]
            here = slice(block.start, block.end)
            size = block.end - block.start
            d = dout[0, here].transpose(0, 1).reshape(groups, -1, dout.shape[-1])
            q, k, v = query[0, :, here].reshape(groups, -1, query.shape[-1]), key[0, :, here], value[0, :, here]
            dvalue[0, :, here] = torch.bmm((shares if keep is None else shares * keep).transpose(1, 2), d)
            dshares = torch.bmm(d, v.transpose(1, 2))
            if keep is not None:
                dshares *= keep
            dscores = torch._softmax_backward_data(dshares, shares, -1, shares.dtype).mul_(ctx.scaling)
            dkey[0, :, here] = torch.bmm(dscores.transpose(1, 2), q)
            dquery[0, :, here] = torch.bmm(dscores, k).view(-1, size, k.shape[-1])
        return dquery, dkey, dvalue, None, None, None, None
