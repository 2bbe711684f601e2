"""What the server needs of a `Student` beyond predict: its session for a while, a reason and an answer by tokens."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edgestill.runtime import decode
from edgestill.runtime.session import Logits, Session
from edgestill.runtime.student import Student


@contextmanager
def writing(student: Student) -> Iterator[tuple[Session, Any]]:
    """(session with the whole vocabulary's logits, tokenizer); nobody else's meanwhile.

    Raises:
        EdgestillError: the student is an encoder.
    """
    student._must_write()
    with student._fresh_session(writes=True) as session:
        yield session, student._tokenizer


def reason(student: Student, fields: Mapping[str, str], limit_tokens: int) -> Generator[None, None, tuple[str, int]]:
    """(what `Student.explain` says, its tokens); pauses after each token, so that the rest may be left."""
    suffix, tokens = student.task.rationale_suffix, list[int]()
    with writing(student) as (session, tokenizer):
        ids = student.task.encode(tokenizer, student.task.fill(fields), suffix)
        for token in decode.greedy(session, ids, [student.task.eos_token_id], limit_tokens):
            tokens.append(token)
            yield
    return "".join(decode.text_pieces(iter(tokens), tokenizer)).strip(), len(tokens)


def answer_tokens(student: Student, ids: list[int], limit_tokens: int) -> Generator[tuple[int, Logits], None, None]:
    """The tokens of a written answer with the logits that each was chosen from, the end among them."""
    with writing(student) as (session, _):
        yield from decode.greedy_steps(session, ids, [student.task.eos_token_id], limit_tokens)


def prompt_of(student: Student, fields: Mapping[str, Any]) -> tuple[list[int], Any]:
    """(token ids of the prompt for some fields, tokenizer)."""
    tokenizer = student._tokenizer
    return student.task.encode(tokenizer, student.task.fill(fields)), tokenizer
