"""Text completions: greedy text after a prompt, and the log-probability of every token of a text.

lm-eval's `local-completions` and `gguf` backends grade through `echo` and `logprobs`: they send context and
continuation as one prompt with max_tokens 1 and sum over the continuation's tokens.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from edgestill.runtime import decode
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.serving.answers import Entry, Piece, Totals, until
from edgestill.runtime.serving.inside import writing
from edgestill.runtime.serving.wire import MAX_CHOICES, MAX_TOP_LOGPROBS, NO_EFFECT, ApiError, Ask
from edgestill.runtime.session import Logits, Session
from edgestill.runtime.student import Student

DEFAULT_MAX_TOKENS = 16  # as OpenAI's API
MAX_PROMPTS = 64
Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class TextAsk:
    """A request, read. A prompt is text or token ids; `logprobs` is how many alternatives a token gets."""

    prompts: tuple[Prompt, ...]
    model: str
    stream: bool
    usage_chunk: bool
    copies: int
    max_tokens: int
    stops: tuple[str, ...]
    echo: bool
    logprobs: int | None
    ignored: tuple[str, ...]


def read_completion(ask: Ask, default_model: str) -> TextAsk:
    """Read a completion request.

    Raises:
        ApiError: 400, a key of the wrong type.
    """
    prompts = _prompts(ask.take("prompt"))
    model, stream, usage_chunk = ask.text("model", default_model), ask.flag("stream"), ask.usage_chunk()
    echo, stops = ask.flag("echo"), ask.stops()
    limit, logprobs = ask.number("max_tokens", 0, 2**31), ask.number("logprobs", 0, MAX_TOP_LOGPROBS)
    copies = ask.number("n", 1, MAX_CHOICES) or 1
    ask.take("seed")
    ask.without_effect({**NO_EFFECT, "best_of": 1})
    limit = DEFAULT_MAX_TOKENS if limit is None else limit
    return TextAsk(prompts, model, stream, usage_chunk, copies, limit, stops, echo, logprobs, ask.ignored())


def _prompts(value: object) -> tuple[Prompt, ...]:
    several = value if isinstance(value, list) and value and type(value[0]) is not int else [value]
    found: tuple[Any, ...] = tuple(tuple(each) if isinstance(each, list) else each for each in several)
    if len(found) > MAX_PROMPTS or not all(isinstance(p, str) or _are_ids(p) for p in found):
        raise ApiError(400, f"prompt wants a text, token ids, or a list of at most {MAX_PROMPTS} of either", "prompt")
    return found


def _are_ids(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def text_pieces(student: Student, asked: TextAsk) -> Iterator[Piece]:
    """The answers to all prompts in order, piece by piece.

    Raises:
        EdgestillError: the student is an encoder, or a prompt is empty, too long or no text of the tokenizer; then
            none is answered.
    """
    total = Totals(0, 0, 0.0, 0.0)
    with writing(student) as (session, tokenizer):
        eos = student.task.eos_token_id
        every = [_Completion(session, tokenizer, prompt, asked, eos) for prompt in asked.prompts]
        for index, one in enumerate(every):
            session.forget()  # so that each gets the answer it gets alone
            for piece in one.pieces():
                yield replace(piece, index=index)
            total = Totals(
                total.prompt_tokens + len(one.ids),
                total.completion_tokens + one.made,
                total.prompt_ms + one.prompt_ms,
                total.predicted_ms + one.predicted_ms,
            )
            last = index == len(every) - 1
            yield Piece("", index=index, finish=one.finish, totals=total if last else None)


class _Completion:
    """One prompt's answer while it is made."""

    def __init__(self, session: Session, tokenizer: Any, prompt: Prompt, asked: TextAsk, eos_token_id: int) -> None:
        self._session, self._asked, self._eos = session, asked, eos_token_id
        self._speller = Speller(tokenizer)
        self.made, self.prompt_ms, self.predicted_ms, self.finish = 0, 0.0, 0.0, "stop"
        if isinstance(prompt, str):
            encoding = _encoded(tokenizer, prompt)
            self.ids, self._text = list(encoding.ids), prompt
            self._offsets = [start for start, _ in encoding.offsets]
        else:
            size = tokenizer.get_vocab_size()
            if max(prompt) >= size:
                raise EdgestillError(
                    f"token id {max(prompt)} is not one of {size}", "send ids of the student's tokenizer"
                )
            self.ids = list(prompt)
            parts = [self._speller.next(token) for token in prompt]
            self._text = "".join(parts)
            self._offsets = list(accumulate(map(len, parts[:-1]), initial=0))
        if len(self.ids) > session.max_tokens:
            raise EdgestillError(
                f"the prompt has {len(self.ids)} tokens, the student holds at most {session.max_tokens}", "shorten it"
            )
        if not self.ids:
            raise EdgestillError("the prompt has no tokens", "send at least one word")

    def pieces(self) -> Iterator[Piece]:
        """The prompt where it is echoed, then what comes after it."""
        start = time.perf_counter()
        if self._asked.echo:
            yield from self._echo()
        limit = min(self._asked.max_tokens, self._session.max_tokens - len(self.ids))
        logits = self._session.logits(self.ids) if limit > 0 else None
        self.prompt_ms = (time.perf_counter() - start) * 1e3
        start = time.perf_counter()
        for piece in until(self._generated(logits, limit), self._asked.stops):
            self.predicted_ms = (time.perf_counter() - start) * 1e3
            yield piece

    def _echo(self) -> Iterator[Piece]:
        """The prompt; with log-probabilities a token at a time, of which the first has none."""
        if self._asked.logprobs is None:
            yield Piece(self._text)
            return
        ends = [*self._offsets[1:], len(self._text)]
        for place, (token, begin, end) in enumerate(zip(self.ids, self._offsets, ends, strict=True)):
            logits = self._session.logits(self.ids[:place]) if place else None
            yield Piece(self._text[begin:end], (self._entry(token, logits, begin),))

    def _generated(self, logits: Logits | None, limit: int) -> Iterator[Piece]:
        """At most `limit` tokens, the first from `logits`."""
        ids, offset = list(self.ids), len(self._text)
        for _ in range(limit):
            logits = self._session.logits(ids) if logits is None else logits
            token = int(logits.argmax())
            ended = token == self._eos
            self.made += 1
            ids.append(token)
            text = "" if ended else self._speller.next(token)
            entries = () if self._asked.logprobs is None else (self._entry(token, logits, offset),)
            offset += len(text)
            yield Piece(text, entries)  # the end has log-probabilities too: graders leave the last token out
            if ended:
                return
            logits = None
        self.finish = "length"

    def _entry(self, token: int, logits: Logits | None, offset: int) -> Entry:
        """A row of the old endpoint's four columns; without logits for a prompt's first token, which follows none."""
        found: Entry = {"tokens": self._speller.one(token), "text_offset": offset}
        if logits is None:
            return {**found, "token_logprobs": None, "top_logprobs": None}
        logprobs = decode.log_softmax(logits)
        count = self._asked.logprobs or 0
        top: dict[str, float] = {}
        best = np.argpartition(-logprobs, count)[:count]
        for each in best[np.argsort(-logprobs[best], kind="stable")]:
            top.setdefault(self._speller.one(int(each)), float(logprobs[each]))
        return {**found, "token_logprobs": float(logprobs[token]), "top_logprobs": top}


class Speller:
    """Text of single tokens, and of a token stream; bytes of an unfinished character wait for the rest."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is a `tokenizers.Tokenizer`."""
        self._tokenizer = tokenizer
        self._anchor: list[int] = list(tokenizer.encode("a", add_special_tokens=False).ids)  # so that blanks stay
        self._before, self._held = self._anchor, list[int]()

    def one(self, token: int) -> str:
        """A token's text on its own."""
        return self._after(self._anchor, [token])

    def next(self, token: int) -> str:
        """What the stream's text grows by; nothing while a character is unfinished."""
        self._held.append(token)
        text = self._after(self._before, self._held)
        if text.endswith("\ufffd") and len(self._held) < 8:
            return ""
        self._before, self._held = self._held, []
        return text

    def _after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        decoded = self._tokenizer.decode
        known = decoded(list(before), skip_special_tokens=False)
        return str(decoded([*before, *ids], skip_special_tokens=False)[len(known) :])


def _encoded(tokenizer: Any, text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EdgestillError("half a surrogate pair, which is no text", "send text in UTF-8") from None
    return tokenizer.encode(text, add_special_tokens=False)
