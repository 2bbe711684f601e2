"""From logits to answers: label probabilities, the label trie, continuation scores, greedy text. numpy only.

Works on any `Session`, so both engines and torch share one meaning of "probability of a label".
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.runtime.session import Logits, Session
from edgestill.runtime.task import Task, template_fields

Probabilities = NDArray[np.float64]


def log_softmax(logits: NDArray[Any]) -> Probabilities:
    """Natural-log softmax over the last axis, in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def label_probabilities(logits: NDArray[Any], token_ids: Sequence[int]) -> Probabilities:
    """Softmax over the L logits of `token_ids` at one position; (V,) -> (L,)."""
    return np.exp(log_softmax(logits[list(token_ids)]))


def independent_probabilities(logits: NDArray[Any], token_ids: Sequence[int]) -> Probabilities:
    """Logistic sigmoid of the L logits of `token_ids`, each on its own; (V,) -> (L,)."""
    half = logits[list(token_ids)].astype(np.float64) / 2
    return np.asarray((1 + np.tanh(half)) / 2)  # as 1 / (1 + exp(-x)), but nothing overflows


def task_probabilities(logits: NDArray[Any], task: Task, text: str = "") -> Probabilities:
    """What the task's labels get at the answer's position, (V,) -> (L,): shares of 1, of a set each its own.

    Of a task with choices the letters that the filled `text`, wanted then, has no choice for get 0, and the others
    share the 1. A task that generates has no labels, L = 0.
    """
    ids = [label.token_id for label in task.labels]
    if task.is_multilabel:
        return independent_probabilities(logits, ids)
    asked = ids[: len(task.choices_in(text))] if task.choices is not None else ids
    return np.pad(label_probabilities(logits, asked), (0, len(ids) - len(asked))) if ids else np.zeros(0)


def constant_prefix(task: Task, tokenizer: Any) -> list[int]:
    """Token ids that every prompt of a task begins with, for `Session.pin`; [] if there are none.

    From the words of the template before its first field, less the tokens that could join with what follows.
    """
    places = [task.text.index("{" + name + "}") for name in template_fields(task.text)]
    words = task.text[: min(places, default=0)].lstrip()
    first = [task.bos_token_id] if task.bos_token_id is not None else []
    if task.is_head or not words.strip():
        return []
    tails = ("a", "A", " a", "1", ".", "\n", "é", "…")
    encoded = [tokenizer.encode(words + tail, add_special_tokens=False).ids for tail in tails]
    shared = min(next((i for i, x in enumerate(ids) if x != encoded[0][i]), len(ids)) for ids in encoded[1:])
    return [*first, *encoded[0][:shared]] if shared else []


def trie_probabilities(session: Session, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Probabilities:
    """Probability of each answer when only these answers are allowed, shape (L,), sum 1.

    Walks the trie of the answers' token ids. At every branching the logits are masked to the children and
    renormalised; a node with one child has probability 1 and costs no forward pass. Each answer should end in the
    end-of-sequence id, so that "no" and "no idea" part at a branch of their own. Answers that are equal share.

    This is what a decoder constrained to the answers would sample; it is not the normalised sequence likelihood
    (see `continuation_logprobs`).
    """
    result = np.zeros(len(answers))
    _walk(session, list(prompt), answers, list(range(len(answers))), 0, 1.0, result)
    return result


def _walk(
    session: Session,
    ids: list[int],
    answers: Sequence[Sequence[int]],
    alive: list[int],
    depth: int,
    mass: float,
    result: Probabilities,
) -> None:
    branches: dict[int, list[int]] = {}
    for index in alive:
        if len(answers[index]) > depth:
            branches.setdefault(answers[index][depth], []).append(index)
        else:
            result[index] = mass / len(alive)
    if len(branches) == 1:
        ((token, inside),) = branches.items()
        _walk(session, [*ids, token], answers, inside, depth + 1, mass, result)
    elif branches:
        shares = label_probabilities(session.logits(ids), list(branches))
        for (token, inside), share in zip(branches.items(), shares, strict=True):
            _walk(session, [*ids, token], answers, inside, depth + 1, mass * float(share), result)


def continuation_logprobs(
    session: Session, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float]:
    """Log-probability in nats of each continuation after the prompt: the sum over its tokens, unnormalised."""
    totals = [0.0] * len(continuations)
    for index in sorted(range(len(continuations)), key=lambda i: list(continuations[i])):  # neighbours share prefixes
        ids = list(prompt)
        for token in continuations[index]:
            totals[index] += float(log_softmax(session.logits(ids))[token])
            ids.append(token)
    return totals


def greedy(session: Session, prompt: Sequence[int], stop_ids: Sequence[int], max_new_tokens: int) -> Iterator[int]:
    """Token ids of the most likely continuation, until one of `stop_ids` or the limit; the stop id is not yielded.

    Raises:
        EdgestillError: the session's own, for a prompt that it does not take.
    """
    for token, _ in greedy_steps(session, prompt, stop_ids, max_new_tokens):
        if token not in stop_ids:
            yield token


def greedy_steps(
    session: Session, prompt: Sequence[int], stop_ids: Sequence[int], max_new_tokens: int
) -> Iterator[tuple[int, Logits]]:
    """`greedy` with the (V,) logits that each token was chosen from; the stop id is yielded, and the last."""
    ids = list(prompt)
    for _ in range(min(max_new_tokens, max(1, session.max_tokens - len(ids)))):
        logits = session.logits(ids)
        token = int(logits.argmax())
        yield token, logits
        if token in stop_ids:
            return
        ids.append(token)


def text_pieces(tokens: Iterator[int], tokenizer: Any) -> Iterator[str]:
    """Text of a token stream, piece by piece.

    Bytes of an unfinished UTF-8 character wait for the rest, and are dropped when the stream ends inside it.
    """
    ids: list[int] = []
    sent = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if len(text) > len(sent) and not text.endswith("�"):
            yield text[len(sent) :]
            sent = text
    text = tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd") if ids else ""
    if len(text) > len(sent):
        yield text[len(sent) :]
