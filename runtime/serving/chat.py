"""Chat completions: messages the teacher was asked with in, the student's label in the same shape out.

Messages that are no template of the teacher's are labelled too, by their last user turn, and said to be unmatched;
nobody is answered in free words. What a student answers that writes is made in `writing`.
"""

import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgestill.runtime.choices import split_choices
from edgestill.runtime.label_sets import EMPTY, SEPARATOR
from edgestill.runtime.prediction import Prediction
from edgestill.runtime.serving.answers import Entry, Piece, Totals, until
from edgestill.runtime.serving.inside import reason
from edgestill.runtime.serving.teacher_prompt import (
    REASON_KEYS,
    Found,
    Said,
    TeacherPrompt,
    answer_keys,
    fields_with_choices,
    find,
)
from edgestill.runtime.serving.wire import MAX_CHOICES, MAX_TOP_LOGPROBS, NO_EFFECT, ApiError, Ask
from edgestill.runtime.student import Student
from edgestill.runtime.task import Task, template_fields

MAX_MESSAGES = 256
REASON_TOKENS = 64
LEAST_LOGPROB = -9999.0  # what OpenAI writes for "as good as never"
ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@dataclass(frozen=True)
class ChatAsk:
    """A request, read. `keys` are those of the object to answer with, none for the bare answer."""

    fields: Mapping[str, Any]
    keys: tuple[str, ...]
    matched: bool
    model: str
    stream: bool
    usage_chunk: bool
    copies: int
    max_tokens: int | None
    stops: tuple[str, ...]
    top_logprobs: int | None
    ignored: tuple[str, ...]


def read_chat(ask: Ask, task: Task, prompt: TeacherPrompt | None, default_model: str, strict: bool) -> ChatAsk:
    """Read a chat request.

    Args:
        ask: its body.
        task: of the student.
        prompt: how the teacher was asked, None where the bundle does not say.
        default_model: stands where the request names no model.
        strict: whether messages that are no template of the teacher's are refused.

    Raises:
        ApiError: 400, a key of the wrong type, no user turn, or unmatched messages with `strict`.
    """
    messages = _messages(ask.take("messages"))
    found = find(prompt, messages, task.choices) if prompt is not None else None
    if found is None and strict:
        raise ApiError(400, "the messages are not asked as the teacher was", "messages", "prompt_unmatched")
    read = found or _last_turn(messages, task, prompt)
    keys = _shape(ask, read.keys, task)
    logprobs, top = ask.flag("logprobs"), ask.number("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not logprobs:
        raise ApiError(400, "top_logprobs wants logprobs: true beside it", "top_logprobs")
    limits = [ask.number(key, 1, 2**31) for key in ("max_tokens", "max_completion_tokens")]
    model, stream, usage_chunk = ask.text("model", default_model), ask.flag("stream"), ask.usage_chunk()
    copies, stops = ask.number("n", 1, MAX_CHOICES) or 1, ask.stops()
    ask.take("seed")  # the same request gets the same answer, whatever the seed
    ask.without_effect(NO_EFFECT)
    return ChatAsk(
        fields=read.fields,
        keys=keys,
        matched=found is not None,
        model=model,
        stream=stream,
        usage_chunk=usage_chunk,
        copies=copies,
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        stops=stops,
        top_logprobs=(top or 0) if logprobs else None,
        ignored=ask.ignored(),
    )


def _messages(value: object) -> list[Said]:
    """(role, text) of every message."""
    if not isinstance(value, list) or not value or len(value) > MAX_MESSAGES:
        raise ApiError(400, f"messages wants a list of 1 to {MAX_MESSAGES} messages", "messages")
    said = []
    for number, message in enumerate(value):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ApiError(400, f"{where} wants a role, one of {', '.join(ROLES)}", where)
        said.append((ROLES[message["role"]], _text(message.get("content"), where)))
    if not any(role == "user" for role, _ in said):
        raise ApiError(400, "messages holds no user turn", "messages")
    return said


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [] if content is None else [None]
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise ApiError(400, f"{where}.content wants text, or parts of type text: the student reads nothing else", where)
    return "".join(part["text"] for part in parts)


def _last_turn(messages: Sequence[Said], task: Task, prompt: TeacherPrompt | None) -> Found:
    """The last user turn as the task's fields; asked for in the teacher's shape where that is known."""
    text = next(text for role, text in reversed(messages) if role == "user")
    fields = fields_with_choices(task.text, text, task.choices)
    if fields is None:
        above, choices = split_choices(text) if task.choices is not None else (text, [])
        first, *rest = template_fields(task.text)
        fields = {first: above, **dict.fromkeys(rest, ""), **({task.choices: choices} if task.choices else {})}
    return Found(fields, prompt.templates[0].keys if prompt is not None else ())


def _shape(ask: Ask, keys: tuple[str, ...], task: Task) -> tuple[str, ...]:
    """The keys to answer with: those of a schema that the request holds, where the student can fill them."""
    wanted: Any = ask.take("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if wanted is not None and kind not in ("text", "json_object", "json_schema"):
        raise ApiError(400, "response_format wants a type: text, json_object or json_schema", "response_format")
    if kind in (None, "text"):
        return keys
    place = wanted.get("json_schema") if kind == "json_schema" else wanted
    schema = place.get("schema") if isinstance(place, dict) else None
    properties = schema.get("properties") if isinstance(schema, dict) else None
    answers = answer_keys(task)
    own = keys or answers[:1]
    if not isinstance(properties, dict):
        return own
    if not set(properties) <= {*answers, *REASON_KEYS} or not set(properties) & set(answers):
        ask.put_back("response_format", wanted)
        return own
    if not all(_same_labels(properties[key], task) for key in answers if key in properties):
        ask.put_back("response_format", wanted)
    return tuple(properties)


def _same_labels(schema: Any, task: Task) -> bool:
    """Whether a label's schema allows the task's labels, and not only some of them or others."""
    inner = schema.get("items", schema) if isinstance(schema, dict) else None
    names = inner.get("enum") if isinstance(inner, dict) else None
    return not isinstance(names, list) or sorted(map(str, names)) == sorted(task.label_names)


def chat_pieces(student: Student, asked: ChatAsk, abstain_below: float | None = None) -> Iterator[Piece | None]:
    """The answer, piece by piece; the label first becomes known, then the reason where one is asked for and given.

    Where the label stands in it is the request's choice, so nothing is said before all is known; until then there is
    a None for every token of the reason.

    An answer that abstains is the likeliest label all the same: its totals say so, and the app decides.

    Raises:
        EdgestillError: an empty text, or one too long for a task that refuses such texts.
    """
    prediction = student.predict(asked.fields, abstain_below=abstain_below)
    start = time.perf_counter()
    why, reason_tokens, cut = yield from reason_of(student, asked)
    reason_ms = (time.perf_counter() - start) * 1e3 if reason_tokens else 0.0
    yield from until(_pieces(prediction, why, asked, student.task), asked.stops)
    facts = {
        "labels": list(prediction.labels),
        "probabilities": prediction.probabilities,
        "confidence": prediction.confidence,
        "abstained": prediction.abstained,
        **({} if prediction.choice is None else {"choice": prediction.choice}),
    }
    totals = Totals(prediction.prompt_tokens, 1 + reason_tokens, prediction.latency_ms, reason_ms, facts)
    yield Piece("", finish="length" if cut else "stop", totals=totals)


def reason_of(student: Student, asked: ChatAsk) -> Generator[None, None, tuple[str | None, int, bool]]:
    """(reason, its tokens, whether max_tokens cut it); None where none is asked for or the student gives none."""
    if student.task.rationale_suffix is None or not set(asked.keys) & set(REASON_KEYS):
        return None, 0, False
    limit = REASON_TOKENS if asked.max_tokens is None else min(REASON_TOKENS, asked.max_tokens - 1)
    if limit < 1:
        return "", 0, True
    text, tokens = yield from reason(student, asked.fields, limit)
    return text, tokens, tokens == limit < REASON_TOKENS


def _pieces(prediction: Prediction, why: str | None, asked: ChatAsk, task: Task) -> Iterator[Piece]:
    """The content as the teacher would write it, each label a token of its own."""

    def value(head: str, key: str) -> Iterator[Piece]:
        if key == "labels":
            yield fixed(f"{head}[" + ('"' if prediction.labels else ""), asked)
            if prediction.labels:
                yield from _labels(prediction, asked, task, '", "', spelled)
            yield fixed('"]' if prediction.labels else "]", asked)
        else:
            yield fixed(f'{head}"', asked)
            yield from _labels(prediction, asked, task, SEPARATOR, spelled)
            yield fixed('"', asked)

    if asked.keys:
        yield from in_object(asked, why, value)
    else:
        yield from _labels(prediction, asked, task, SEPARATOR, lambda name: name)


def in_object(asked: ChatAsk, why: str | None, value: Callable[[str, str], Iterable[Piece]]) -> Iterator[Piece]:
    """The JSON object that the teacher would write; each fixed part and the reason is a token of its own.

    `value(head, key)` gives the pieces of an answer under a key, `head` being what stands before it.
    """
    opening = "{"
    for key in asked.keys:
        head = f'{opening}"{key}": '
        if key not in REASON_KEYS:
            yield from value(head, key)
        elif why is not None:
            yield fixed(head, asked)
            yield Piece(json.dumps(why, ensure_ascii=False))
        else:
            continue
        opening = ", "
    yield fixed("}", asked)


def spelled(name: str) -> str:
    """A label as it stands between the quotes of JSON."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _labels(prediction: Prediction, asked: ChatAsk, task: Task, between: str, spell: Any) -> Iterator[Piece]:
    if not prediction.labels:
        yield fixed(EMPTY if task.is_multilabel else "", asked)
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[: asked.top_logprobs or 0]
    for place, name in enumerate(prediction.labels):
        if place:
            yield fixed(between, asked)
        top = [entry(spell(other), p) for other, p in ranked]
        yield Piece(spell(name), entries_of(spell(name), prediction.probabilities[name], top, asked))


def fixed(text: str, asked: ChatAsk) -> Piece:
    """A part of the answer's shape, which is a token that had to come."""
    top = [entry(text, 1.0)] if asked.top_logprobs else []
    return Piece(text, entries_of(text, 1.0, top, asked))


def entries_of(token: str, p: float, top: list[Entry], asked: ChatAsk) -> tuple[Entry, ...]:
    """The log-probabilities of a token with probability `p`, none where the request wants none."""
    return () if asked.top_logprobs is None else ({**entry(token, p), "top_logprobs": top},)


def entry(token: str, p: float) -> Entry:
    """One token in OpenAI's shape."""
    logprob = max(math.log(p), LEAST_LOGPROB) if p > 0 else LEAST_LOGPROB
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
