"""A teacher in this process: a GGUF file run by llama.cpp or a Hugging Face model run by transformers.

Writes the reason token by token, then reads all labels' probabilities off one walk over their tokens, or writes an
answer of its own where there are none, so that its answer always has the right shape. Greedy: `temperature` is not for
it. Answers one request at a time.
"""

import asyncio
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.distill.base import TOKENIZER_FILES
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.endpoint import Reply
from edgestill.distill.teacher.forms import form_of
from edgestill.distill.teacher.local_model import Model, gguf_path, open_model, teacher_base
from edgestill.distill.teacher.priming import unprimed
from edgestill.distill.teacher.prompt import TOP_LOGPROBS
from edgestill.runtime import decode, manifest

JSON_STRING = re.compile(r'(?:[^"\\\n]|\\.)*')  # up to the quote or the line's end that closes it
ANSWER_ROOM = 64  # tokens kept for an answer of its own while the reason is written
HIDDEN = re.compile("(\ue000[0-9]+\ue000)")  # stands for a message while a chat template is filled


def model_hash(recipe: Recipe, recipe_path: Path) -> str:
    """16 hex digits of the model's files: what stands for the endpoint in the cache.

    Raises:
        EdgestillError: no such file, package or folder.
    """
    if recipe.teacher.kind == "gguf":
        path = gguf_path(recipe, recipe_path)
        return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)[:16]
    base = teacher_base(str(recipe.teacher.path), recipe_path.parent)
    beside = [p for name in ("config.json", *TOKENIZER_FILES) if (p := Path(base.folder) / name).is_file()]
    return manifest.sha256_json([base.weights_sha256, *map(manifest.sha256_file, beside)])[:16]


@functools.lru_cache(maxsize=4)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001
    """A file's hash; `size` and `mtime_ns` tell a changed file apart. A run asks several times for some gigabytes."""
    return manifest.sha256_file(path)


class LocalEndpoint:
    """Answers request bodies as an endpoint would, from a model in memory, opened at the first request."""

    one_at_a_time = True

    def __init__(self, recipe: Recipe, recipe_path: Path, host: str) -> None:
        """`host` is what stands for the endpoint in the cache."""
        self.host, self.model = host, recipe.teacher.model or str(recipe.teacher.path)
        self._recipe, self._recipe_path = recipe, recipe_path
        self._form, self._priming = form_of(recipe.task), recipe.teacher.priming
        self._keys = self._form.keys(recipe.teacher.rationale_order if recipe.task.rationale else None)
        self._opened: Model | None = None

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """See `OpenAIEndpoint.send`; never a fault."""
        return await asyncio.to_thread(self._answer, body)

    async def close(self) -> None:
        """Close the model; the next request would open it again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _answer(self, body: Mapping[str, Any]) -> Reply:
        if self._opened is None:
            self._opened = open_model(self._recipe, self._recipe_path)
        model, limit = self._opened, int(body.get("max_tokens") or body["max_completion_tokens"])
        prompt = _prompt(model, body["messages"])
        if len(prompt) + limit > model.session.max_tokens:
            holds = model.session.max_tokens
            detail = f"{len(prompt)} prompt tokens and {limit} for the answer, but the context holds {holds}"
            return Reply({"error": {"status": 400, "message": detail, "reason": "too_long"}})
        model.session.forget()
        text = unprimed(body["messages"][1]["content"], self._priming)  # the system turn is the first
        return Reply({"model": self.model} | self._say(model, prompt, limit, self._form.options(text)))

    def _say(self, model: Model, prompt: list[int], limit: int, options: Sequence[str]) -> dict[str, Any]:
        """A response of at most `limit` tokens; cut off before it begins where they are too few for any answer.

        One of the `options` is the answer, or what the model writes where there are none.
        """
        leads = [f'{before}"{key}": "' for before, key in zip(("{", '", '), self._keys, strict=False)] + ['"}']
        at = self._keys.index(self._form.key)
        names = [json.dumps(name, ensure_ascii=False)[1:-1] for name in options]
        answers = [_inside(model, name + leads[at + 1]) for name in names]  # a lead after a choice is part of it
        opened = [_inside(model, lead) if not (answers and place == at + 1) else [] for place, lead in enumerate(leads)]
        texts = len(self._keys) - bool(answers)
        room = limit - sum(map(len, opened[:-1])) - max(map(len, answers), default=0)
        if room < texts:
            return {"finish_reason": "length", "usage": {"prompt_tokens": len(prompt), "completion_tokens": 0}}
        ids, content, facts, finish = list(prompt), dict[str, str](), dict[str, Any](), "stop"
        for key, opening in zip(self._keys, opened, strict=False):
            ids += opening
            if key == self._form.key and answers:
                odds, tops = _label_odds(model, ids, answers)
                best = int(np.argmax(odds))
                content[key], ids = options[best], [*ids, *answers[best]]
                facts = {"label_probabilities": dict(zip(options, odds, strict=True)), "label_top_logprobs": tops}
            else:
                kept = 0 if texts == 1 or key != self._keys[0] else room // 2  # for the text that comes after
                start, most = len(ids), room - (min(kept, ANSWER_ROOM) if key == "rationale" else kept)
                content[key], ids = _write(model, ids, most)
                room -= len(ids) - start
                finish = "length" if key == self._form.key and len(ids) - start == most else finish
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids) - len(prompt)}
        return {"content": json.dumps(content, ensure_ascii=False), "finish_reason": finish, "usage": usage, **facts}


def _prompt(model: Model, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation. Special tokens that a message names are text there: they end no turn."""
    hidden, plain = list[Mapping[str, str]](), dict[str, list[int]]()
    for number, message in enumerate(messages):
        ids = model.encode(message["content"], special=False)
        if ids == model.encode(message["content"]):
            hidden.append(message)
        else:
            hidden.append({**message, "content": f"\ue000{number}\ue000"})
            plain[f"\ue000{number}\ue000"] = ids
    text = model.chat(hidden)
    if not plain:
        return model.encode(text)
    return [token for part in HIDDEN.split(text) for token in plain.get(part) or model.encode(part)]


def _inside(model: Model, text: str) -> list[int]:
    """Token ids of a text that goes on after another: some tokenizers put a blank before what they think begins."""
    before, both = model.encode("\n"), model.encode("\n" + text)
    return both[len(before) :] if both[: len(before)] == before else model.encode(text)


def _label_odds(
    model: Model, ids: list[int], answers: Sequence[list[int]]
) -> tuple[list[float], list[tuple[str, float]]]:
    """Each answer's probability after `ids`, and the likeliest tokens there: (text, natural-log probability)."""
    first = decode.log_softmax(model.session.logits(ids))
    odds = decode.trie_probabilities(model.session, ids, answers)
    top = np.argsort(first)[::-1][:TOP_LOGPROBS]
    return [float(share) for share in odds], [(model.text([int(t)]), round(float(first[t]), 4)) for t in top]


def _write(model: Model, ids: list[int], room: int) -> tuple[str, list[int]]:
    """A JSON string's inside, greedily, up to its quote, a line's end or `room` tokens: (what it says, all ids)."""
    written, said = list[int](), ""
    for _ in range(room):
        token = int(model.session.logits([*ids, *written]).argmax())
        if model.stops(token):
            break
        text = model.text([*written, token])
        end = JSON_STRING.match(text).end()  # type: ignore[union-attr]  # it matches the empty text
        if text[end:] not in ("", "\\"):
            written = [*written, *_inside(model, text[len(said) : end])][:room]
            said = text[:end]
            break
        written, said = [*written, token], text
    return _unescaped(said), [*ids, *written]


def _unescaped(said: str) -> str:
    """What a JSON string's inside means; as it is where it is none. Half characters are left out."""
    try:
        meant = str(json.loads(f'"{said}"', strict=False))
    except json.JSONDecodeError:
        meant = said.rstrip("\\")
    return meant.encode("utf-8", "ignore").decode().rstrip("\ufffd").strip()
