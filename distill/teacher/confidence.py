"""How sure the teacher is: label probabilities from token log-probabilities or from votes. Asks nothing."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

LABEL_KEY = '"label"'
VALUE = re.compile(LABEL_KEY + r'\s*:\s*"')


def label_probabilities(
    logprobs: Sequence[Sequence[Any]], label: str, labels: Sequence[str]
) -> dict[str, float] | None:
    """Probabilities over `labels`, summing to 1, read off the tokens that spell the answer's label.

    Follows the answer's own tokens through the label and what closes it. At each token every label that goes on
    otherwise gets the mass of the longest alternative that it goes on with; labels that go on with the same one share
    its mass, an approximation: the endpoint tells nothing about the tokens behind it. Other texts are left out.
    None where the tokens do not tell: the label is not spelled by them, does not end, or has no alternatives.

    Args:
        logprobs: a token an entry: [text, natural-log probability, [[alternative, natural-log probability], ...]].
        label: the label that was read from the answer.
        labels: all allowed labels.
    """
    text = "".join(token for token, _, _ in logprobs)
    if (found := _find(text, label)) is None:
        return None
    opening, start = found
    ends = accumulate(len(token) for token, _, _ in logprobs)
    tokens = [entry for entry, end in zip(logprobs, ends, strict=True) if end > opening]
    lead = text[len(text) - sum(len(token) for token, _, _ in tokens) : start]
    closing = text[start + len(_spelled(label)) :][:1] or "\n"
    ahead = {name: lead + _spelled(name) + closing for name in labels}
    shares, mass = dict.fromkeys(labels, 0.0), 1.0
    for token, logprob, alternatives in tokens:
        if not alternatives:
            return None
        odds = {other: math.exp(min(chance, 0.0)) for other, chance in alternatives if other not in ("", token)}
        for other, names in _by_token(ahead, [token, *odds]).items():
            if other != token and len(names) < len(labels):  # what every label goes on with tells nothing
                shares |= {name: shares[name] + mass * odds[other] / len(names) for name in names}
        mass *= math.exp(min(logprob, 0.0))
        ahead = {name: rest[len(token) :] for name, rest in ahead.items() if _fit(rest, token)}
        if list(ahead) == [label]:
            shares[label] += mass
            total = sum(shares.values())
            return {name: share / total for name, share in shares.items()} if total > 0 else None
    return None


def vote_shares(votes: Sequence[str], labels: Sequence[str]) -> dict[str, float] | None:
    """The share of the samples that chose each label; None without a usable vote."""
    counts = Counter(votes)
    return {label: counts[label] / len(votes) for label in labels} if votes else None


def _find(text: str, label: str) -> tuple[int, int] | None:
    """Where the last "label" key and its value begin; else of a label that ends the text, alone or after a colon."""
    if values := list(VALUE.finditer(text)):
        return values[-1].span()
    match = re.search(rf"(?:^|[:=])\W*({re.escape(_spelled(label))})\W*$", text)
    return (match.start(), match.start(1)) if match else None


def _spelled(label: str) -> str:
    """A label as it stands between the quotes of JSON."""
    return json.dumps(label, ensure_ascii=False)[1:-1]


def _by_token(ahead: Mapping[str, str], tokens: Sequence[str]) -> dict[str, list[str]]:
    """Labels by the longest token that each goes on with, as a tokenizer would take it."""
    found = defaultdict[str, list[str]](list)
    for name, rest in ahead.items():
        if fitting := [token for token in tokens if _fit(rest, token)]:
            found[max(fitting, key=len)].append(name)
    return found


def _fit(rest: str, token: str) -> bool:
    """Whether a text that is still to be written can go on with a token, or ends within it."""
    return rest.startswith(token) or token.startswith(rest)
