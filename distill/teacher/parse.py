"""From what a teacher said to an answer and a rationale, or to the reason why it cannot be used. No default answer.

What counts as an answer is a form's to say; see `form`.
"""

import ast
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edgestill.runtime import label_sets

# Thinking that a server left in the content, with or without its opening tag. An answer begins with { or a fence.
THINKING = re.compile(r"(?:(?!\s*[{`]).*?</think>)+", re.DOTALL)
# Openings of a refusal in prose, for endpoints that have no `refusal` field.
REFUSAL = re.compile(
    r"^\W*(?:unfortunately,? )?(?:i(?:\W?m| am) (?:(?:really|very|so) )?(?:sorry|not able|unable)\b|sorry(?:,| but\b)"
    r"|i apologi[sz]e\b|i (?:can(?:not|\W?t)|won\W?t|must decline)\b|as an ai\b)",
    re.IGNORECASE,
)
LINE = r"^[^\w\n]*(?:final )?(?:%s|answer|class|category)[^\w\n]*[:=]\s*(\S.*)"
LABEL_LINE, LABELS_LINE = (re.compile(LINE % key, re.IGNORECASE | re.MULTILINE) for key in ("label", "labels?"))
RATIONALE_LINE = re.compile(
    r"^[^\w\n]*(?:rationale|reason(?:ing)?|explanation)[^\w\n]*[:=][\s*]*(\S.*)", re.IGNORECASE | re.MULTILINE
)
OBJECT = re.compile(r"\{\s*[\"']")
FLAT_OBJECT = re.compile(r"\{[^{}]{1,4000}\}")
MAX_OBJECTS = 1000  # more are no answer
SEPARATORS = re.compile(r"(?<=\S)[\s_\u2010-\u2015-]+(?=\S)")
QUOTES = " \t\r\n\"'`*\u2018\u2019\u201c\u201d\xab\xbb"


@dataclass(frozen=True)
class Reading:
    """What an answer says. Exactly one of `label` and `reason` is set; `reason` is a reason of the ledger.

    A set of labels stands in `label` as `label_sets` writes it.
    """

    label: str | None = None
    rationale: str | None = None
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Wanted:
    """What in a text is an answer.

    It stands in an object under one of `keys`, the first that is there, else behind a word that `line` finds, else it
    is the whole text. `match` tells the answer that a value is, None where it is none; `unusable` says why it is none.
    `named` is what an object without one lacks, `plural` what several are.
    """

    keys: tuple[str, ...]
    line: re.Pattern[str]
    named: str
    plural: str
    match: Callable[[object], str | None]
    unusable: Callable[[object], Reading]


def read_response(response: dict[str, Any], read: Callable[[str], Reading]) -> Reading:
    """Judge a stored response: how it ended first, then what it says.

    Args:
        response: content, refusal, finish_reason, usage; or error {status, code, message}.
        read: what a whole content says, such as a form does.
    """
    if (error := response.get("error")) is not None:
        return Reading(reason=error["reason"], detail=f"HTTP {error['status']}: {error['message']}")
    content, finish = response.get("content") or "", response.get("finish_reason")
    if finish == "content_filter":
        return Reading(reason="content_filter", detail="the endpoint filtered the answer")
    if response.get("refusal"):
        return Reading(reason="refused", detail=str(response["refusal"]))
    if finish != "length":
        return read(content)
    reasoning = (response.get("usage") or {}).get("reasoning_tokens") or 0
    if not said_in(content) and (reasoning or content.strip()):
        return Reading(reason="reasoning_used_budget", detail=f"{reasoning or 'all'} reasoning tokens left no room")
    return Reading(reason="truncated", detail="the answer reached max_tokens")


def read_text(content: str, wanted: Wanted) -> Reading:
    """Answer and rationale of a text: a JSON object wherever it stands, lines such as `Label: x`, or the bare answer.

    An answer that merely occurs in prose is not taken for one, nor is one of several that contradict each other.
    """
    text = said_in(content)
    if not text:
        return Reading(reason="empty", detail="no content")
    objects, rest = _objects(text)
    answers = [(one, key) for one in objects if (key := next((k for k in wanted.keys if k in one), None)) is not None]
    found = [(each[key], each.get("rationale") or each.get("reason")) for each, key in answers]
    if not found:
        rationale = RATIONALE_LINE.search(rest)
        lines: list[str] = wanted.line.findall(rest) or [text]
        found = [(line, rationale and rationale[1]) for line in lines]
    allowed = {name: why for said, why in found if (name := wanted.match(said)) is not None}
    if len(allowed) == 1:
        label, why = allowed.popitem()
        return Reading(label, clean(why) or None if isinstance(why, str) else None)
    if allowed:
        return Reading(reason="unparsable", detail=f"several {wanted.plural}: {', '.join(map(repr, allowed))}")
    if REFUSAL.match(rest):
        return Reading(reason="refused", detail=clean(rest)[:200])
    said = found[-1][0]
    if said is text:
        return Reading(reason="unparsable", detail=f"no JSON object with {wanted.named}")
    return wanted.unusable(said)


def objects_in(content: str) -> list[dict[str, Any]]:
    """The objects of an answer, wherever they stand, as `read_text` reads them: keys in small letters, in order."""
    return _objects(said_in(content))[0]


def unusable_label(said: object) -> Reading:
    """Why a value is no label."""
    if not isinstance(said, str):
        return Reading(reason="unparsable", detail=f"label is of type {type(said).__name__}, not text")
    return Reading(reason="label_not_allowed", detail=f"label is {said.strip()[:80]!r}")


def said_in(content: str) -> str:
    """What follows the thinking; nothing where the thinking does not end."""
    thinking = THINKING.match(content)
    text = content[thinking.end() if thinking else 0 :].strip()
    return "" if text.startswith("<think>") else text


def match_label(said: object, labels: Sequence[str]) -> str | None:
    """The allowed label that `said` is: as it is written, or up to what `_plain` leaves out where that is one label."""
    if isinstance(said, int | float):
        said = json.dumps(said)
    if not isinstance(said, str):
        return None
    said = said.strip()
    return said if said in labels else _by_plain_name(tuple(labels)).get(_plain(said))


def match_set(said: object, labels: Sequence[str]) -> str | None:
    """The set that `said` is, as `label_sets` writes it: a list or names with bars; each as in `match_label`."""
    parts = label_sets.split(said) if isinstance(said, str) and said.strip() else said
    if not isinstance(parts, list | tuple):
        return None
    names = [name for part in parts if (name := match_label(part, labels)) is not None]
    return label_sets.join(names, labels) if len(names) == len(parts) else None


@lru_cache(maxsize=8)
def _by_plain_name(labels: tuple[str, ...]) -> dict[str, str]:
    """Labels by their plain name, without those that share one: they are only known as they are written."""
    plain = [_plain(label) for label in labels]
    count = Counter(plain)
    return {name: label for name, label in zip(plain, labels, strict=True) if count[name] == 1}


def _plain(label: str) -> str:
    """A label without what teachers change: case, how characters are composed, separators of words, what surrounds it.

    Other punctuation stays: C is not C++, and 1 is not -1.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return SEPARATORS.sub(" ", folded).lstrip(QUOTES).rstrip(QUOTES + ".,;:!?。}") or folded


def clean(text: str) -> str:
    """A text that can be written as UTF-8, without blanks around it."""
    return text.encode("utf-8", "replace").decode().strip()


def _objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """Objects of a text, written as JSON or as Python does, and the text without them.

    What stands inside an object is never read as another: a rationale may quote anything. So the search ends at an
    object that is broken and has others inside.
    """
    objects, between, end = list[dict[str, Any]](), list[str](), 0
    while len(between) < MAX_OBJECTS and (opening := OBJECT.search(text, end)):
        start = opening.start()
        flat = FLAT_OBJECT.match(text, start)
        try:
            value, after = DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            if flat is None:
                break
            value, after = _python_object(flat[0]), flat.end()
        between.append(text[end:after] if value is None else text[end:start] + "{}")
        objects += [] if value is None else [value]
        end = after
    return objects, "".join([*between, text[end:]])


def _python_object(text: str) -> dict[str, Any] | None:
    """An object with single quotes or a comma too many; None where it is none."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.Dict):
            return None
        keys = [str(ast.literal_eval(key or "")) for key in tree.keys]
        return _object(list(zip(keys, map(ast.literal_eval, tree.values), strict=True)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with small keys. One that only wraps another is that other; a key said twice has a list of both."""
    if len(pairs) == 1 and isinstance(pairs[0][1], dict):
        return pairs[0][1]
    made: dict[str, Any] = {}
    for name, value in pairs:
        key = name.strip().lower()
        made[key] = value if key not in made or made[key] == value else [made[key], value]
    return made


DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_object)
