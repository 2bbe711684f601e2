"""Turn a recipe's task into what is trained and shipped: which token answers for each label, and what is written out.

Needs the base's tokenizer only.
"""

import itertools
import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgestill.distill.base import Base, read_config
from edgestill.distill.recipe import Recipe
from edgestill.runtime.errors import UsageError
from edgestill.runtime.task import ANSWER_SUFFIX, RATIONALE_SUFFIX, Label, Task, first_token_ids

# The most that a student writes where the recipe does not say: an answer, and a reason with the answer behind it.
ANSWER_TOKENS, CHAIN_TOKENS = 32, 256


def build_task(recipe: Recipe, base: Base, tokenizer: Any) -> Task:
    """The finished task: labels with their answer tokens, prompt suffixes, limits and the end-of-sequence id.

    A task that generates has no labels: what is written is the answer.

    `answer: path` lets the first token of each label's name answer for it and needs these tokens to differ;
    `answer: token` gives each label a vocabulary token of its own, written before the name: see `answer_words`. `auto`
    takes path where it can. An encoder answers with its head: an output a label.

    Raises:
        UsageError: `answer: path` with labels that begin alike, or more labels than there are answer tokens.
    """
    if recipe.the_student.kind == "encoder":
        return _head_task(recipe, base, tokenizer)
    if recipe.task.is_written:
        return _written_task(recipe, base, tokenizer)
    names = list(recipe.task.labels)
    first = first_token_ids(tokenizer, [" " + name for name in names])
    distinct = len(set(first)) == len(first)
    answer = recipe.task.answer if recipe.task.answer != "auto" else ("path" if distinct else "token")
    if answer == "path" and not distinct:
        twins = next((a, b) for (a, x), (b, y) in itertools.combinations(zip(names, first, strict=True), 2) if x == y)
        raise UsageError(f"task.answer: path, but {twins[0]!r} and {twins[1]!r} begin with the same token", "use token")
    if answer == "path":
        completions = [" " + name for name in names]
    else:
        completions = [f"{word} {name}" for word, name in zip(answer_words(names, tokenizer), names, strict=True)]
    tokens = first_token_ids(tokenizer, completions)
    labels = tuple(
        Label(name, text, token, completion)
        for (name, text), token, completion in zip(recipe.task.labels.items(), tokens, completions, strict=True)
    )
    return _decoder_task(recipe, base, tokenizer, labels=labels, answer=answer)


def _written_task(recipe: Recipe, base: Base, tokenizer: Any) -> Task:
    """The task of a student that writes its answer; in a chain the reason is part of it and no task of its own."""
    chain = recipe.train.objective == "chain"
    return _decoder_task(
        recipe,
        base,
        tokenizer,
        labels=(),
        answer="text",
        match=recipe.task.match,
        answer_pattern=recipe.task.answer_pattern,
        max_answer_tokens=recipe.task.max_answer_tokens or (CHAIN_TOKENS if chain else ANSWER_TOKENS),
        chain=chain,
    )


def _decoder_task(recipe: Recipe, base: Base, tokenizer: Any, **answers: Any) -> Task:
    """The task of a student that writes: `answers` are the fields about them, the others are the same for all."""
    return _task(
        recipe,
        answer_suffix=ANSWER_SUFFIX,
        rationale_suffix=RATIONALE_SUFFIX if recipe.learns_rationale else None,
        max_text_tokens=recipe.data.max_text_tokens,
        bos_token_id=_bos_token_id(tokenizer),
        eos_token_id=_eos_token_id(base, tokenizer),
        **answers,
    )


def _head_task(recipe: Recipe, base: Base, tokenizer: Any) -> Task:
    """The task of an encoder: the special tokens that its tokenizer puts around a text, and no words to write.

    A text may be as long as the recipe says and the encoder's table of positions lets it.
    """
    around = tokenizer.encode("").ids
    config = read_config(base)
    first_position = 0 if config.get("model_type") == "bert" else int(config.get("pad_token_id") or 0) + 1
    room = int(config.get("max_position_embeddings", 512)) - first_position - len(around)
    if len(around) != 2:
        raise UsageError(f"student.base puts {len(around)} special tokens around a text, wanted 2", "name an encoder")
    return _task(
        recipe,
        labels=tuple(Label(name, text, i, "") for i, (name, text) in enumerate(recipe.task.labels.items())),
        answer="head",
        answer_suffix="",
        rationale_suffix=None,
        max_text_tokens=min(recipe.data.max_text_tokens, room),
        bos_token_id=around[0],
        eos_token_id=around[1],
    )


def _task(recipe: Recipe, **own: Any) -> Task:
    """A task of the recipe; `own` are the fields that depend on the student's kind."""
    return Task(
        kind=recipe.task.kind,
        instruction=recipe.task.instruction,
        text=recipe.data.text,
        too_long=recipe.data.too_long,
        redact=recipe.teacher.redact,
        none=recipe.task.none,
        choices=recipe.task.choices,
        **own,
    )


def answer_words(names: Sequence[str], tokenizer: Any) -> list[str]:
    """For each label a token of its own, with its blank: where possible a word of its name, else a letter or two.

    Words begin where the base's own sense of the text points; letters would have to be learnt from nothing. As many
    labels as possible get a word, rarer words rather than frequent ones; a label that goes without has a long name.

    Raises:
        UsageError: more labels than tokens.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    words = [list(dict.fromkeys(_one_token(tokenizer, name))) for name in names]
    count = Counter(word for own in words for word in own)
    columns = {word: place for place, word in enumerate(count)}
    places = [(label, columns[word], count[word] / len(names)) for label, own in enumerate(words) for word in own]
    none = 10.0 * len(names)  # dearer than any number of frequent words
    places += [(label, len(columns) + label, none + 1 / len(name)) for label, name in enumerate(names)]
    rows, cols, costs = zip(*places, strict=True)
    _, chosen = min_weight_full_bipartite_matching(csr_array((costs, (rows, cols))))
    known = list(columns)
    letters = (letter for letter in _letters(tokenizer) if letter not in columns)
    found = [known[place] if place < len(known) else next(letters, None) for place in chosen]
    answers = [word for word in found if word is not None]
    if len(answers) < len(names):
        raise UsageError(f"{len(names)} labels, but the vocabulary has only {len(answers)} answer tokens for them")
    return answers


def _one_token(tokenizer: Any, name: str) -> Iterator[str]:
    """Words of a label's name that are one token after a blank and before another word."""
    for word in re.findall(r"[^\W\d_]{2,}", name):
        for spelt in (" " + word.lower(), " " + word):
            if _stands_alone(tokenizer, spelt):
                yield spelt
                break


def _letters(tokenizer: Any) -> Iterator[str]:
    """` A` to ` Z`, then ` a` to ` z`, then pairs of letters: those that are one token each, in a fixed order."""
    letters = string.ascii_uppercase + string.ascii_lowercase
    for piece in itertools.chain(letters, map("".join, itertools.product(letters, repeat=2))):
        if _stands_alone(tokenizer, " " + piece):
            yield " " + piece


def _stands_alone(tokenizer: Any, piece: str) -> bool:
    ids = tokenizer.encode(piece + " x", add_special_tokens=False).ids
    return len(ids) == 2 and ids[:1] == tokenizer.encode(piece, add_special_tokens=False).ids


def _bos_token_id(tokenizer: Any) -> int | None:
    """The id that the tokenizer's own rule puts before a text, if it puts one."""
    with_special, plain = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    return int(with_special[0]) if len(with_special) > len(plain) and with_special[0] != plain[0] else None


def _eos_token_id(base: Base, tokenizer: Any) -> int:
    """The tokenizer's end-of-sequence token; the model's own list decides when the tokenizer names none."""
    path = Path(base.folder) / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.exists() else None
    content = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(content) if content else None
    if found is not None:
        return int(found)
    listed = read_config(base).get("eos_token_id")
    first = listed[0] if isinstance(listed, list) and listed else listed
    if not isinstance(first, int):
        raise UsageError("student.base names no end-of-sequence token", "add eos_token to its tokenizer_config.json")
    return first
