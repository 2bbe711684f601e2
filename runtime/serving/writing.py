"""Chat completions of a student that writes: its answer as the teacher would give it, bare or in an object.

A bare answer goes out token by token. One in an object is written to its end first, for the request says where in the
object it stands; meanwhile there is a None for every token.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from math import exp
from typing import Any

import numpy as np

from edgestill.runtime import decode
from edgestill.runtime.serving.answers import Entry, Piece, Totals, until
from edgestill.runtime.serving.chat import ChatAsk, entries_of, entry, fixed, in_object, reason_of, spelled
from edgestill.runtime.serving.completions import Speller
from edgestill.runtime.serving.inside import answer_tokens, prompt_of
from edgestill.runtime.student import Student
from edgestill.runtime.task import ANSWER_SUFFIX
from edgestill.runtime.written import read_answer, reason_in


def written_pieces(student: Student, asked: ChatAsk, abstain_below: float | None = None) -> Iterator[Piece | None]:
    """The answer, piece by piece; its totals hold the canonical answer, all that was written, and how sure it is.

    Raises:
        EdgestillError: an empty text, or one too long for a task that refuses such texts.
    """
    answer = _Answer(student, asked)
    why, reason_tokens, cut, reason_ms = None, 0, False, 0.0
    if not asked.keys:
        with closing(answer.pieces()) as pieces:
            yield from until(pieces, asked.stops)
    else:
        parts = []
        for part in answer.pieces():
            parts.append(part)
            yield None
        if student.task.chain:
            why = reason_in(answer.text, student.task)
        else:
            start = time.perf_counter()
            why, reason_tokens, cut = yield from reason_of(student, asked)
            reason_ms = (time.perf_counter() - start) * 1e3 if reason_tokens else 0.0
        said = [_saying(part, spelled(part.text)) for part in _behind_reason(parts, answer.text, student)]
        quoted = lambda head, _: (fixed(f'{head}"', asked), *said, fixed('"', asked))  # noqa: E731
        yield from until(in_object(asked, why, quoted), asked.stops)
    tokens, predicted_ms = answer.made + reason_tokens, answer.predicted_ms + reason_ms
    totals = Totals(len(answer.ids), tokens, answer.prompt_ms, predicted_ms, answer.facts(abstain_below or 0.0))
    yield Piece("", finish="length" if answer.cut or cut else "stop", totals=totals)


class _Answer:
    """One answer while it is written; `cut` says that the request's or the task's limit ended it."""

    def __init__(self, student: Student, asked: ChatAsk) -> None:
        self._student, self._asked = student, asked
        self.ids, tokenizer = prompt_of(student, asked.fields)
        self._speller = Speller(tokenizer)
        self.text, self.made, self.logprob_nats, self.cut = "", 0, 0.0, True
        self.prompt_ms = self.predicted_ms = 0.0

    def pieces(self) -> Generator[Piece, None, None]:
        """A piece a token, from the first that is more than blanks."""
        task = self._student.task
        limit = min(task.max_answer_tokens, self._asked.max_tokens or task.max_answer_tokens)
        start = time.perf_counter()
        with closing(answer_tokens(self._student, self.ids, limit)) as tokens:
            for token, logits in tokens:
                logprobs = decode.log_softmax(logits)
                self.logprob_nats += float(logprobs[token])
                self.made += 1
                took_ms = (time.perf_counter() - start) * 1e3
                self.prompt_ms, self.predicted_ms = self.prompt_ms or took_ms, took_ms - (self.prompt_ms or took_ms)
                if token == task.eos_token_id:
                    self.cut = False
                    return
                said = self._speller.next(token)
                said = said if self.text else said.lstrip()
                self.text += said
                if said:
                    yield Piece(said, entries_of(said, exp(logprobs[token]), self._top(logprobs), self._asked))

    def _top(self, logprobs: Any) -> list[Entry]:
        count = self._asked.top_logprobs or 0
        best = np.argsort(-logprobs, kind="stable")[:count] if count else ()
        return [entry(self._speller.one(int(token)), exp(logprobs[token])) for token in best]

    def facts(self, abstain_below: float) -> dict[str, Any]:
        """What a label's answer says too, and all that was written."""
        sure = exp(self.logprob_nats)
        answer = read_answer(self.text, self._student.task)
        told = {"labels": [answer], "probabilities": {}, "confidence": sure, "abstained": sure < abstain_below}
        return {**told, "written": self.text.strip()}


def _behind_reason(parts: Sequence[Piece], text: str, student: Student) -> Iterator[Piece]:
    """The pieces of the answer alone: of a chain those behind its last answer line, without blanks before the first."""
    at, begun = 0, False
    found = ("\n" + text).rfind(ANSWER_SUFFIX) if student.task.chain else -1
    place = 0 if not student.task.chain else len(text) if found < 0 else found - 1 + len(ANSWER_SUFFIX)
    for part in parts:
        end = at + len(part.text)
        said = part.text[max(0, place - at) :] if end > place else ""
        said, at = said if begun else said.lstrip(), end
        if said:
            begun = True
            yield _saying(part, said)


def _saying(piece: Piece, text: str) -> Piece:
    """The piece with this text, which its entry of log-probabilities names too."""
    said = {"token": text, "bytes": list(text.encode())}
    return replace(piece, text=text, entries=tuple({**each, **said} for each in piece.entries))
