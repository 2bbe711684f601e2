"""Answers that a student writes: writing one, finding it in what was written, and comparing two.

One meaning for the device, for torch and for a teacher's words: an answer is its canonical spelling. The choices of a
row, which are lettered lines below its text, come from `choices`. Loads no model.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

from edgestill.runtime import decode
from edgestill.runtime.choices import choices_of, with_choices
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.session import Session
from edgestill.runtime.task import ANSWER_SUFFIX, Task

__all__ = [
    "Written",
    "canonical",
    "choices_of",
    "overlap",
    "read_answer",
    "reason_asked",
    "reason_in",
    "with_choices",
    "write_answer",
]

NUMBER, F1 = "number", "f1"
REASON_TOKENS = 64  # of a reason on its own
# blanks, sentence ends, quotes, brackets, the stars and bars of Markdown; then the same of other scripts
OUTER = " .,:;!?\"'`*_()[]{}<>" + "«»\u2018\u2019\u201a\u201c\u201d\u201e…\u3001\u3002\uff0c"
FRACTION_DIGITS = 12
_DIGITS = r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_MINUS = "-\u2212\u2013"
_VULGAR = "\u00bc-\u00be\u2150-\u215f\u2189"  # one character is a fraction, or the beginning of one
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\].])[{_MINUS}])?[$€£¥₹]?(?P<minus>(?<=[$€£¥₹])[{_MINUS}])?"
    r"(?:(?P<whole>\d{1,3}(?:,\d{3})+|\d+)[^\S\n]+(?=\d{1,2}\s?[/\u2044]\s?\d+(?![\d./\u2044])))?"
    rf"(?P<value>{_DIGITS})(?P<power>[eE][-+]?\d{{1,2}}(?![\d.]))?(?:\s?[/\u2044]\s?(?P<under>\d+)(?![\d./\u2044]))?"
)


@dataclass(frozen=True)
class Written:
    """One answer as a student wrote it.

    `text` is all of it, outer blanks taken off, and `answer` the canonical answer in it, "" where there is none.
    `logprob_nats` is the sum over the tokens written, `ids`, and over the end, where the student ended it.
    """

    text: str
    answer: str
    logprob_nats: float
    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many were written, the end left out."""
        return len(self.ids)


def write_answer(session: Session, tokenizer: Any, task: Task, text: str) -> Written:
    """The most likely answer to a filled text, token by token, up to `task.max_answer_tokens`.

    Args:
        session: a session over the whole vocabulary; the caller decides what state it holds.
        tokenizer: a `tokenizers.Tokenizer`.
        task: a task that generates.
        text: what `Task.fill` returned.

    Raises:
        EdgestillError: as `Task.encode`, and as the session for a prompt that it does not take.
    """
    ids: list[int] = []
    logprob_nats = 0.0
    prompt = task.encode(tokenizer, text)
    for token, logits in decode.greedy_steps(session, prompt, [task.eos_token_id], task.max_answer_tokens):
        logprob_nats += float(decode.log_softmax(logits)[token])
        if token != task.eos_token_id:
            ids.append(token)
    written = "".join(decode.text_pieces(iter(ids), tokenizer)).strip()
    return Written(written, read_answer(written, task), logprob_nats, tuple(ids))


def read_answer(written: str, task: Task) -> str:
    """The canonical answer in what a student or a teacher wrote; "" where it holds none.

    Of a chain it is looked for behind the last "Answer:" line only. With a pattern the last match counts, its first
    group where it has one: people and models state their result last.
    """
    if task.chain:
        _, marker, written = ("\n" + written).rpartition(ANSWER_SUFFIX)
        if not marker:
            return ""
    if task.answer_pattern is not None:
        matches = list(re.finditer(task.answer_pattern, written))
        if not matches:
            return ""
        written = matches[-1][1 if matches[-1].re.groups else 0] or ""
    return canonical(written, task.match)


def reason_asked(task: Task) -> tuple[str, int]:
    """(what stands before a student's reason, most tokens of it; of a chain the answer's are among them).

    Raises:
        EdgestillError: the student was trained without rationales.
    """
    if task.chain:
        return task.prompt_suffix, task.max_answer_tokens
    if task.rationale_suffix is None:
        raise EdgestillError("this student was trained without rationales", "set task.rationale: true and train again")
    return task.rationale_suffix, REASON_TOKENS


def reason_in(written: str, task: Task) -> str:
    """The reason in what a student wrote behind `reason_asked`: of a chain, what stands before its last answer line."""
    before, marker, _ = ("\n" + written).rpartition(ANSWER_SUFFIX)
    return (before if task.chain and marker else written).strip()


def canonical(text: str, match: str) -> str:
    """The one spelling that answers are compared in; the same again when applied twice.

    number: the last number of the text as plain decimal text, without thousands separators, currency or trailing
    zeros, a fraction such as 3/4 or 1 1/2 to 12 digits; "" if there is none. A comma parts thousands and is no decimal
    mark.
    exact and f1: Unicode NFKC, case folded, runs of blanks as one, outer quotes, brackets and sentence ends taken off.
    """
    return _last_number(text) if match == NUMBER else _plain(text)


def overlap(found: str, wanted: str, match: str) -> float:
    """How far two answers agree, 0 to 1: token F1 for f1 (as SQuAD's, Rajpurkar et al. 2016), else 1 if they are equal.

    Tokens are the words between blanks, outer punctuation off; articles stay, which SQuAD's own script drops. No
    answer agrees with nothing, not even with none.
    """
    a, b = canonical(found, match), canonical(wanted, match)
    if match != F1:
        return float(a == b != "")
    ours, theirs = _tokens(a), _tokens(b)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def _tokens(text: str) -> Sequence[str]:
    return [word for word in (piece.strip(OUTER) for piece in text.split()) if word]


def _plain(text: str) -> str:
    before = None
    while text != before:  # case folding can undo the normal form, and stripping lay bare more of it
        before = text
        text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(OUTER)
    return text


def _last_number(text: str) -> str:
    text = re.sub(rf"(?<=\d)(?=[{_VULGAR}])", " ", text)
    text = re.sub(f"[{_VULGAR}]", lambda match: unicodedata.normalize("NFKC", match[0]), text)
    every = list(_NUMBER.finditer(text))
    if not every:
        return ""
    found = every[-1]
    digits = re.sub(r"[,\s]", "", found["value"]) + (found["power"] or "")
    value = Decimal(digits)
    if found["under"] is not None:
        under = Decimal(found["under"])
        if not under:
            return ""
        if found["whole"] is not None and value >= under:
            return _last_number(text[found.start("value") :])  # no mixed number: two numbers side by side
        whole = Decimal((found["whole"] or "0").replace(",", ""))
        value = Context(prec=FRACTION_DIGITS).divide(whole * under + value, under)
    plain = format(value, "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "-" + plain if plain != "0" and (found["sign"] or found["minus"]) else plain
