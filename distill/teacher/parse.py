"""From what a teacher said to a label and a rationale, or to the reason why it cannot be used. No default label."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Openings of a refusal in prose, for endpoints that have no `refusal` field.
REFUSAL = re.compile(
    r"^\W*(i'?m (really |very )?sorry|sorry,|i apologi[sz]e|i (can(no|')?t|am not able to|am unable to|won'?t) "
    r"|as an ai\b|i must decline|unfortunately,? i)",
    re.IGNORECASE,
)
LABEL_LINE = re.compile(
    r"^\W*(?:final )?(?:label|answer|class|category)\W*[:=]\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE
)
RATIONALE_LINE = re.compile(
    r"^\W*(?:rationale|reason(?:ing)?|explanation)\W*[:=]\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE
)
DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class Reading:
    """What an answer says. Exactly one of `label` and `reason` is set; `reason` is a reason of the ledger."""

    label: str | None = None
    rationale: str | None = None
    reason: str | None = None
    detail: str = ""


def read_response(response: dict[str, Any], labels: Sequence[str]) -> Reading:
    """Judge a stored response: how it ended first, then what it says.

    Args:
        response: content, refusal, finish_reason, usage; or error {status, code, message}.
        labels: the allowed labels, as they are written.
    """
    if (error := response.get("error")) is not None:
        return Reading(reason=error["reason"], detail=f"HTTP {error['status']}: {error['message']}")
    content, finish = response.get("content") or "", response.get("finish_reason")
    if finish == "content_filter":
        return Reading(reason="content_filter", detail="the endpoint filtered the answer")
    if response.get("refusal"):
        return Reading(reason="refused", detail=str(response["refusal"]))
    if not content.strip():
        reasoning = (response.get("usage") or {}).get("reasoning_tokens") or 0
        if finish == "length" and reasoning:
            return Reading(reason="reasoning_used_budget", detail=f"{reasoning} reasoning tokens left no room")
        return Reading(reason="truncated" if finish == "length" else "empty", detail="no content")
    if finish == "length":
        return Reading(reason="truncated", detail="the answer reached max_tokens")
    return read_text(content, labels)


def read_text(content: str, labels: Sequence[str]) -> Reading:
    """Label and rationale of a text: a JSON object wherever it stands, lines such as `Label: x`, or the bare label.

    A label that merely occurs in prose is not taken for an answer.
    """
    text = re.sub(r"<think>.*?</think>", "", content, flags=re.DOTALL).strip()
    known = {_plain(label): label for label in reversed(labels)}
    ambiguous = len(known) < len(labels)
    found = next((o for o in _objects(text) if "label" in o), None)
    if found is not None:
        said, rationale = found["label"], found.get("rationale") or found.get("reason")
    elif lines := LABEL_LINE.findall(text):
        said, rationale = lines[-1], next(iter(RATIONALE_LINE.findall(text)), None)
    elif (label := _match(text, labels, known, ambiguous)) is not None:
        return Reading(label=label)
    elif REFUSAL.match(text):
        return Reading(reason="refused", detail=text[:200])
    else:
        return Reading(reason="unparsable", detail="no JSON object with a label")
    if not isinstance(said, str):
        return Reading(reason="unparsable", detail=f"label is {json.dumps(said, ensure_ascii=False)[:80]}, not text")
    label = _match(said, labels, known, ambiguous)
    if label is None:
        return Reading(reason="label_not_allowed", detail=f"label is {said[:80]!r}")
    return Reading(label=label, rationale=rationale.strip() or None if isinstance(rationale, str) else None)


def _match(said: str, labels: Sequence[str], known: dict[str, str], ambiguous: bool) -> str | None:
    """The allowed label that `said` is, up to case, blanks, quotes and punctuation where that is unambiguous."""
    if said in labels:
        return said
    stripped = said.strip().strip("\"'`*.").strip()
    if stripped in labels:
        return stripped
    return None if ambiguous else known.get(_plain(said))


def _plain(label: str) -> str:
    """A label without case, punctuation and runs of blanks; the label itself where nothing would be left."""
    return " ".join(re.sub(r"[\W_]+", " ", label.casefold()).split()) or label


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in a text, outermost first; then every Python dict literal, for single quotes."""
    start = text.find("{")
    while start != -1:
        try:
            value, end = DECODER.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        else:
            if isinstance(value, dict):
                yield {str(key).strip().lower(): inner for key, inner in value.items()}
        start = text.find("{", end)
    for match in re.finditer(r"\{[^{}]{1,4000}\}", text):
        try:
            value = ast.literal_eval(match[0])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict):
            yield {str(key).strip().lower(): inner for key, inner in value.items()}
