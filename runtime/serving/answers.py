"""The pieces of an answer, and their JSON: OpenAI's shapes, with llama-server's timings. Asks no model."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgestill.runtime.serving.wire import stop_at

Entry = dict[str, Any]
CHAT, TEXT = "chat.completion", "text_completion"


@dataclass(frozen=True)
class Totals:
    """What a whole request took. `facts` is what OpenAI's shape has no place for: the answer with its probabilities."""

    prompt_tokens: int
    completion_tokens: int
    prompt_ms: float
    predicted_ms: float
    facts: dict[str, Any] = field(default_factory=dict)

    def usage(self) -> dict[str, int]:
        """OpenAI's block."""
        total = self.prompt_tokens + self.completion_tokens
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {**counts, "total_tokens": total}

    def timings(self) -> dict[str, Any]:
        """llama-server's block; rates are null where no time was taken or nothing made."""
        found: dict[str, Any] = {}
        for name, count, ms in (
            ("prompt", self.prompt_tokens, self.prompt_ms),
            ("predicted", self.completion_tokens, self.predicted_ms),
        ):
            found |= {f"{name}_n": count, f"{name}_ms": ms}
            found[f"{name}_per_token_ms"] = ms / count if count and ms else None
            found[f"{name}_per_second"] = count / ms * 1e3 if count and ms else None
        return found


@dataclass(frozen=True)
class Piece:
    """Some text of the answer to prompt `index`, with the log-probabilities of its tokens.

    The last piece of each prompt says why the answer ends there, the last of all what the request took.
    """

    text: str
    entries: tuple[Entry, ...] = ()
    index: int = 0
    finish: str | None = None
    totals: Totals | None = None


@dataclass(frozen=True)
class Reply:
    """What is the same in every part of a request's answer. `kind` is CHAT or TEXT, `copies` the n of the request."""

    kind: str
    model: str
    fingerprint: str
    copies: int = 1
    logprobs: bool = False
    usage_chunk: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """The answer in one object."""
        merged: dict[int, Piece] = {}
        for piece in pieces:
            before = merged.get(piece.index, Piece("", index=piece.index))
            merged[piece.index] = replace(piece, text=before.text + piece.text, entries=before.entries + piece.entries)
        choices = [self._choice(piece, copy) for piece in merged.values() for copy in range(self.copies)]
        return {**self._head(), "choices": choices, **_ended(piece.totals, usage=True)}

    def chunks(self, pieces: Iterable[Piece]) -> Iterator[dict[str, Any]]:
        """The answer as the objects of a stream."""
        begun: set[int] = set()
        for piece in pieces:
            for copy in range(self.copies):
                choice = self._choice(piece, copy, first=piece.index not in begun)
                ended = _ended(piece.totals, usage=False) if copy == self.copies - 1 else {}
                yield {**self._head(chunk=True), "choices": [choice], **ended}
            begun.add(piece.index)
            if piece.totals is not None and self.usage_chunk:
                yield {**self._head(chunk=True), "choices": [], "usage": piece.totals.usage()}

    def _head(self, chunk: bool = False) -> dict[str, Any]:
        chat = self.kind == CHAT
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.id}",
            "object": self.kind + (".chunk" if chunk and chat else ""),
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _choice(self, piece: Piece, copy: int, first: bool | None = None) -> dict[str, Any]:
        """One choice; of a stream where `first` is given."""
        found: dict[str, Any] = {"index": piece.index * self.copies + copy}
        if self.kind == TEXT:
            found |= {"text": piece.text, "logprobs": _columns(piece.entries) if self.logprobs else None}
        else:
            said = {"content": piece.text}
            if first is None:
                found["message"] = {"role": "assistant", **said, "refusal": None}
            else:
                found["delta"] = {"role": "assistant", **said} if first else said
            found["logprobs"] = {"content": list(piece.entries), "refusal": None} if self.logprobs else None
        return {**found, "finish_reason": piece.finish}


def until(pieces: Iterable[Piece], stops: Sequence[str]) -> Iterator[Piece]:
    """The pieces of one prompt's answer up to the first of `stops`; a text that may be its beginning is held back."""
    held: list[Piece] = []
    longest = max(map(len, stops), default=1)
    for piece in pieces:
        held.append(piece)
        text = "".join(each.text for each in held)
        at = stop_at(text, tuple(stops))
        if at is not None:
            yield from _up_to(held, at)
            return
        while held and len(text) - len(held[0].text) >= longest - 1:
            text = text[len(held[0].text) :]
            yield held.pop(0)
    yield from held


def _up_to(pieces: Sequence[Piece], at: int) -> Iterator[Piece]:
    for piece in pieces:
        if at <= 0:
            return
        yield replace(piece, text=piece.text[:at])
        at -= len(piece.text)


def _columns(entries: Sequence[Entry]) -> dict[str, Any]:
    """The old endpoint's shape: a list a column."""
    return {name: [entry[name] for entry in entries] for name in ("tokens", "token_logprobs", "top_logprobs")} | {
        "text_offset": [entry["text_offset"] for entry in entries]
    }


def _ended(totals: Totals | None, usage: bool) -> dict[str, Any]:
    if totals is None:
        return {}
    found = {"usage": totals.usage()} if usage else {}
    return {**found, "timings": totals.timings(), **({"edgestill": totals.facts} if totals.facts else {})}
