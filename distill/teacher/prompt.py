"""What is written to the teacher: the messages of a row, the schema of the answer, the parameters, and the cache key.

What is asked for in which shape is a `Form`'s to say. Sends nothing and reads no answer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.forms import form_of
from edgestill.distill.teacher.priming import primed
from edgestill.runtime.manifest import sha256_json
from edgestill.runtime.serving.teacher_prompt import TeacherPrompt, Template, Turn

TOP_LOGPROBS = 20  # the most that the OpenAI API returns
LONGER_FACTOR = 4  # an answer that was cut off is asked for once more with this many times its tokens
MESSAGE_BOUND_TOKENS = 32  # what a chat template may add around one message

# What a request may do without; an endpoint's complaint that names one of these is about the request, not a fault.
OPTIONAL = ("response_format", "json_schema", "json_object", "logprobs", "temperature", "max_completion_tokens")
REPAIR = "That answer cannot be used: "
FORMATS = ("json_schema", "json_object", "text")


@dataclass(frozen=True)
class Dialect:
    """What an endpoint has been seen to accept; it starts with everything and steps down when the endpoint refuses."""

    answer_format: str = "json_schema"
    logprobs: bool = True
    max_tokens_name: str = "max_tokens"
    temperature: bool = True

    def without(self, refusal: str, fixed_format: bool) -> "Dialect | None":
        """The dialect to try after a 400 or 422 that says this; None when that names nothing we can drop.

        With `fixed_format` the recipe chose the answer's format, so that it is not dropped.
        """
        words = refusal.lower()
        if self.max_tokens_name == "max_tokens" and "max_completion_tokens" in words:
            return replace(self, max_tokens_name="max_completion_tokens")
        if self.logprobs and "logprobs" in words:
            return replace(self, logprobs=False)
        named = any(word in words for word in OPTIONAL[:3])
        if named and self.answer_format != "text" and not fixed_format:
            return replace(self, answer_format=FORMATS[FORMATS.index(self.answer_format) + 1])
        if self.temperature and "temperature" in words:
            return replace(self, temperature=False)
        return None


@dataclass(frozen=True)
class Request:
    """One chat completion to ask for. `sample` tells apart requests that are equal on purpose (votes, agreement)."""

    host: str
    body: Mapping[str, Any]
    purpose: str
    dialect: Dialect
    sample: int = 0

    @cached_property
    def key(self) -> str:
        """32 hex digits over endpoint host, model, messages, parameters, schema and sample: its address in the cache.

        Online and batch requests, and requests of other runs, have the same key when they ask the same.
        """
        return sha256_json([self.host, self.body, self.sample])[:32]

    @cached_property
    def prompt_bound_tokens(self) -> int:
        """At least as many as the prompt can have without knowing the tokenizer: UTF-8 bytes, and 32 a message."""
        messages = self.body["messages"]
        text = sum(len(message["content"].encode()) + MESSAGE_BOUND_TOKENS for message in messages)
        schema = self.body.get("response_format")
        return text + (len(json.dumps(schema)) if schema else 0)

    @property
    def completion_bound_tokens(self) -> int:
        """The most tokens the answer may have."""
        return int(self.body.get("max_tokens") or self.body["max_completion_tokens"])


class Prompter:
    """Builds every request of a recipe in a dialect; immutable, made anew when the dialect changes."""

    def __init__(self, recipe: Recipe, host: str, model: str, dialect: Dialect, form: Form | None = None) -> None:
        """`host` is the endpoint's host and port, or what stands for it; `form` is the task's own unless given."""
        self._recipe, self._host, self._model = recipe, host, model
        self.dialect, self.form = dialect, form or form_of(recipe.task)
        keys = self.form.keys(_order(recipe))
        self.system = self.form.instructions(keys)
        self._schema = _response_format(self.form.schema(keys), dialect.answer_format)

    def first(self, text: str) -> Request:
        """The request for a row's text; what primes the teacher stands around the text here and nowhere else."""
        priming = self._recipe.teacher.priming if self.form.primes else "none"
        asked = primed(text, priming, self._recipe.task.choices is not None)
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": asked}]
        return self._request("answer", messages, self._recipe.teacher.max_tokens)

    def longer(self, request: Request) -> Request:
        """The same again with room for a longer answer."""
        messages, limit = request.body["messages"], request.completion_bound_tokens * LONGER_FACTOR
        return self._request("longer", messages, limit)

    def repair(self, request: Request, answer: str, problem: str, text: str = "") -> Request:
        """The same, with the unusable answer to the row with this text and what is wrong with it."""
        complaint = f"{REPAIR}{problem}. Answer again with the JSON object alone; {self.form.mend(text)}."
        said = [{"role": "assistant", "content": answer}, {"role": "user", "content": complaint}]
        return self._request("repair", [*request.body["messages"], *said], request.completion_bound_tokens)

    def vote(self, text: str, number: int) -> Request:
        """One of several samples of the same row, at the temperature of votes."""
        request = self.first(text)
        body = dict(request.body)
        if "temperature" in body:
            body["temperature"] = self._recipe.teacher.vote_temperature
        return replace(request, body=body, purpose="vote", sample=number)

    def again(self, text: str) -> Request:
        """The same request a second time, to see whether the teacher agrees with itself."""
        return replace(self.first(text), purpose="agreement", sample=-1)

    def _request(self, purpose: str, messages: list[dict[str, str]], max_tokens: int) -> Request:
        body: dict[str, Any] = {"model": self._model, "messages": messages}
        body[self.dialect.max_tokens_name] = max_tokens
        if self.dialect.temperature:
            body["temperature"] = self._recipe.teacher.temperature
        if self._schema is not None:
            body["response_format"] = self._schema
        if self.dialect.logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return Request(self._host, body | self._recipe.teacher.extra_body, purpose, self.dialect)


def first_dialect(recipe: Recipe) -> Dialect:
    """What is tried first: everything that the recipe does not switch off."""
    wanted = recipe.teacher.answer_format
    asks_odds = recipe.teacher.logprobs and form_of(recipe.task).tells_odds
    return Dialect("json_schema" if wanted == "auto" else wanted, asks_odds)


def endpoint_host(base_url: str) -> str:
    """Host, port and path of an address: gateways tell their routes apart by the path."""
    parts = urlsplit(base_url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname}{port}{parts.path.rstrip('/')}"


def _order(recipe: Recipe) -> str | None:
    """Where the reason stands, None where none is asked for."""
    return recipe.teacher.rationale_order if recipe.task.rationale else None


def teacher_prompt(recipe: Recipe, recorded: Template | None = None) -> TeacherPrompt:
    """How the teacher of a recipe is asked, for who must know its questions again: first the recipe's own way.

    Beside it stand the other orders of label and reason, each with the instructions in a system turn and, for models
    that know none, in the user's; an app's question is never primed. `recorded` is how imported answers were asked for;
    it comes last, because it may be any user turn at all.
    """
    form, text = form_of(recipe.task), recipe.data.text
    templates = list[Template]()
    for keys in dict.fromkeys(map(form.keys, (_order(recipe), None, "before", "after"))):
        system = form.instructions(keys)
        templates.append(Template((Turn("system", system), Turn("user", "", text)), keys))
        templates.append(Template((Turn("user", f"{system}\n\n", text),), keys))
    if recorded is not None:
        templates.append(recorded)
    return TeacherPrompt(recipe.teacher.model, tuple(templates), REPAIR)


def _response_format(schema: dict[str, Any], answer_format: str) -> dict[str, Any] | None:
    if answer_format == "text":
        return None
    if answer_format == "json_object":
        return {"type": "json_object", "schema": schema}  # llama-cpp-python and others read the schema there
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
