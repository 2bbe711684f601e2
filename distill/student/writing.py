"""What a student in training writes: many prompts in one batch, token by token, with keys and values kept. No loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def write(
    causal: Any,
    prompts: Sequence[Sequence[int]],
    eos_token_id: int,
    most_tokens: int,
    pick: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
) -> list[tuple[int, ...]]:
    """A completion of each of R prompts: up to the end of sequence, which it holds, or `most_tokens` tokens.

    Args:
        causal: a transformers causal language model; left as it was.
        prompts: token ids, none empty; shorter ones are padded on the left and the padding masked.
        eos_token_id: ends a completion.
        most_tokens: of a completion.
        pick: the next tokens (R,) by the logits (R, V); the likeliest unless given.
    """
    from transformers import DynamicCache

    longest, written = max(map(len, prompts)), [list[int]() for _ in prompts]
    ids = torch.tensor([[eos_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    places, cache = (mask.cumsum(-1) - 1).clamp_min(0), DynamicCache(config=causal.config)
    with _as_published(causal):
        for _ in range(most_tokens):
            kept = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
            output = causal(input_ids=ids, attention_mask=mask, position_ids=places, **kept)
            ids = pick(output.logits[:, -1].float())[:, None]
            for said, token in zip(written, ids[:, 0].tolist(), strict=True):
                if said[-1:] != [eos_token_id]:
                    said.append(token)
            if all(said[-1] == eos_token_id for said in written):
                break
            mask, places = torch.cat([mask, torch.ones_like(ids)], 1), places[:, -1:] + 1
    return [tuple(said) for said in written]


@contextmanager
def _as_published(causal: Any) -> Iterator[None]:
    """The model in evaluation, with transformers' own attention: the packed one knows no earlier keys and values."""
    was_training, attention = causal.training, causal.config._attn_implementation
    causal.eval()
    causal.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        causal.set_attn_implementation(attention)
        causal.train(was_training)
