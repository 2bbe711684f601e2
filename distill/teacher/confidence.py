"""How sure the teacher is: label probabilities from token log-probabilities or from votes. Asks nothing."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

LABEL_KEY = '"label"'


def label_probabilities(
    logprobs: Sequence[Sequence[Any]], label: str, labels: Sequence[str]
) -> dict[str, float] | None:
    """Probabilities over `labels`, summing to 1, read off the tokens that spell the answer's label.

    Follows the answer's own tokens through the label. At each token every alternative that continues the text to
    exactly one other label gives that label its mass; the walk ends where only the answer's label is left. Mass on
    texts that are no label is left out. An alternative that leads to several labels shares its mass among them, which
    is an approximation: the endpoint tells nothing about the tokens behind it.

    Args:
        logprobs: a token an entry: [text, natural-log probability, [[alternative, natural-log probability], ...]].
        label: the label that was read from the answer.
        labels: all allowed labels.

    Returns:
        None when the label's text is not found in the tokens.
    """
    start = _label_start(logprobs, label)
    if start is None:
        return None
    written, mass = "", 1.0
    shares = dict.fromkeys(labels, 0.0)
    position = 0
    for token, logprob, alternatives in logprobs:
        begin, position = position, position + len(token)
        if position <= start:
            continue
        lead = token[: max(0, start - begin)]
        for other, other_logprob in alternatives:
            if other != token and other.startswith(lead):
                reached = _reached(written + other[len(lead) :], labels)
                for name in reached:
                    shares[name] += mass * math.exp(other_logprob) / len(reached)
        mass *= math.exp(logprob)
        written += token[len(lead) :]
        if _reached(written, labels) == [label]:
            break
    shares[label] += mass
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()} if total > 0 else None


def vote_shares(votes: Sequence[str], labels: Sequence[str]) -> dict[str, float] | None:
    """The share of the samples that chose each label; None without a usable vote."""
    counts = Counter(votes)
    return {label: counts[label] / len(votes) for label in labels} if votes else None


def _label_start(logprobs: Sequence[Sequence[Any]], label: str) -> int | None:
    """Character offset at which the answer's label begins: behind the last "label" key, or the only place it stands."""
    text = "".join(token for token, _, _ in logprobs)
    key = text.rfind(LABEL_KEY)
    start = text.find(label, key + len(LABEL_KEY)) if key != -1 else text.rfind(label)
    return start if start != -1 else None


def _reached(text: str, labels: Sequence[str]) -> list[str]:
    """Labels that a text may still become, or is, with what closes it behind."""
    closed = [label for label in labels if text.startswith(label) and text[len(label) : len(label) + 1] in ('"', "\n")]
    return closed or [label for label in labels if label.startswith(text)]
