"""What is kept of a chat completion's body. Judges nothing."""

from contextlib import suppress
from typing import Any

from edgestill.distill.teacher.confidence import VALUE

KEPT_TOKENS = 48
MOST_TOKENS = 2**53  # a larger count is no count


def compact(body: dict[str, Any]) -> dict[str, Any]:
    """The first choice and the usage, in a short form. An extra that is malformed is left out: the answer was paid for.

    Raises:
        LookupError, TypeError, AttributeError: not a chat completion.
    """
    choice = body["choices"][0]
    message = choice["message"]
    if not isinstance(message.get("content"), str | None):
        raise TypeError("content is no text")
    kept: dict[str, Any] = {key: clean(str(message[key])) for key in ("content", "refusal") if message.get(key)}
    named = {"finish_reason": choice.get("finish_reason"), "model": body.get("model")}
    kept |= {key: clean(str(value)) for key, value in named.items() if value is not None}
    with suppress(LookupError, TypeError, AttributeError, ValueError):
        kept["usage"] = _usage(body["usage"])
    with suppress(LookupError, TypeError, AttributeError, ValueError):
        kept["logprobs"] = label_tokens([(clean(token["token"]), token) for token in choice["logprobs"]["content"]])
    return kept


def clean(text: str) -> str:
    """`text` that can be written as UTF-8: halves of surrogate pairs become question marks."""
    return text.encode("utf-8", "replace").decode()


def label_tokens(tokens: list[tuple[str, dict[str, Any]]]) -> list[list[Any]]:
    """The tokens from the last "label" key on, which is all that the label's probabilities need, in a short form."""
    text = "".join(token for token, _ in tokens)
    start = max((match.start() for match in VALUE.finditer(text)), default=0)
    kept: list[list[Any]] = []
    position = 0
    for token, facts in tokens:
        position += len(token)
        if position > start and len(kept) < KEPT_TOKENS:
            others = facts.get("top_logprobs") or []
            alternatives = [[clean(other["token"]), round(other["logprob"], 4)] for other in others]
            kept.append([token, round(facts["logprob"], 4), alternatives])
    return kept


def _usage(usage: dict[str, Any]) -> dict[str, int | None]:
    """Token counts as they are billed, at their highest reading.

    Some endpoints count reasoning in `total_tokens` only, and some count cached tokens beside the prompt's.
    """
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    total = _count(usage.get("total_tokens"))
    cached = _count(_inner(usage, "prompt_tokens_details").get("cached_tokens"))
    if prompt is not None and completion is not None:
        completion = max(completion, (total or 0) - prompt)
        prompt += cached if cached is not None and cached > prompt else 0
    reasoning = _count(_inner(usage, "completion_tokens_details").get("reasoning_tokens"))
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return counts | {"reasoning_tokens": reasoning, "cached_tokens": cached}


def _inner(usage: dict[str, Any], key: str) -> dict[str, Any]:
    value = usage.get(key)
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None
