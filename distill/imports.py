"""Stored answers of any common shape become rows and a replay teacher. Reads files, asks nobody, judges no label."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import read_records, row_id
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

ASKED = ("prompt", "input", "question", "request", "query", "text")
LABELLED = ("label", "labels")
ANSWERED = ("completion", "response", "answer", "output", *LABELLED)
NO_PAIR = "no prompt or no answer in it"
OTHER_PROMPT = "its prompt does not match --prompt"
AGAIN = "the same text was there before"
NO_TEXT = "half a surrogate pair, which is no text"


@dataclass(frozen=True)
class Imported:
    """What was read, kept, and left out by reason."""

    read: int
    kept: int
    skipped: dict[str, int]


def import_answers(source: Path, folder: Path, prompt: str = "{text}", requests: Path | None = None) -> Imported:
    """Write `folder`/pool.jsonl (rows) and `folder`/teacher.jsonl (text, raw, usage) from stored answers.

    Records may be chat completions with their messages (`messages` and `choices`; `request` and `response`; messages
    that end with the assistant's), pairs (`prompt` and `completion`, `input` and `output`, ...), or the lines of a
    batch's output. The folder appears whole or not at all.

    Args:
        source: a .jsonl, .csv or .parquet file.
        folder: new.
        prompt: how a row became the last user message; `{text}` stands for the row.
        requests: input file of the batch whose output `source` is; joined by `custom_id`.

    Raises:
        UsageError: `folder` is there already, `prompt` has no `{text}`, or no record can be used.
        EdgestillError: a file cannot be read, or the folder not be written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already", "name a new folder")
    if prompt.count("{text}") != 1:
        raise UsageError(f"--prompt {prompt!r} wants {{text}} once", 'such as --prompt "Classify: {text}"')
    pattern = re.compile("(.+)".join(re.escape(part) for part in prompt.strip().split("{text}")), re.DOTALL)
    asked = {} if requests is None else {str(r.get("custom_id")): r.get("body") for r in _records(requests)}
    read, skipped, kept = 0, Counter[str](), dict[str, dict[str, Any]]()
    for record in _records(source):
        read += 1
        body = asked.get(str(record.get("custom_id")))
        answer = _answer({"request": body, **record} if body else record, pattern)
        if isinstance(answer, str):
            skipped[answer] += 1
        elif kept.setdefault(row_id(answer["text"]), answer) is not answer:
            skipped[AGAIN] += 1
    if not kept:
        reasons = ", ".join(f"{count}: {why}" for why, count in skipped.items())
        raise UsageError(f"{source}: none of {read} records can be used ({reasons})", "type: edgestill import --help")
    _write(folder, list(kept.values()))
    return Imported(read, len(kept), dict(skipped))


def _records(source: Path) -> Iterator[dict[str, Any]]:
    if not source.is_file():
        raise EdgestillError(f"no file {source}", "name a .jsonl, .csv or .parquet file")
    return (record for _, record in read_records(str(source), "train"))


def _write(folder: Path, answers: list[dict[str, Any]]) -> None:
    """Both files in a folder beside, which then gets its name: a folder with the name is whole."""
    partial = folder.with_name(folder.name + manifest.PARTIAL_SUFFIX)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        manifest.write_jsonl(partial / "teacher.jsonl", answers)
        manifest.write_jsonl(partial / "pool.jsonl", ({"text": answer["text"]} for answer in answers))
        partial.rename(folder)
    except OSError as error:
        raise manifest.disk_error(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _answer(record: Mapping[str, Any], pattern: re.Pattern[str]) -> dict[str, Any] | str:
    """What the replay teacher reads, or why a record is left out."""
    asked, said = _pair(record)
    if asked is None or said is None or not asked.strip():
        return NO_PAIR
    match = pattern.fullmatch(asked.strip())
    if match is None or not match[1].strip():
        return OTHER_PROMPT
    try:
        (match[1] + said).encode()
    except UnicodeEncodeError:
        return NO_TEXT
    usage = _usage(record)
    return {"text": match[1].strip(), "raw": said} | ({} if usage is None else {"usage": usage})


def _pair(record: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(what the user said last, what was answered); None for what is not there."""
    request, response = _dict(record.get("request")) or _dict(record.get("body")) or record, record.get("response")
    messages = request.get("messages") or request.get("input")
    if isinstance(messages, list):
        said = _completion(response) or _completion(record)
        turns = [(m.get("role"), _text(m.get("content"))) for m in messages if isinstance(m, dict)]
        if said is None and turns and turns[-1][0] == "assistant":
            said = turns[-1][1]
        users = [text for role, text in turns if role == "user" and text is not None]
        return (users[-1] if users else None), said
    asked = next((record[key] for key in ASKED if isinstance(record.get(key), str)), None)
    key = next((key for key in ANSWERED if record.get(key) or (key in LABELLED and record.get(key) == [])), None)
    answer = None if key is None else record[key]
    if key in LABELLED:
        answer = _labelled(answer, record.get("rationale"))
    if isinstance(answer, dict):
        return asked, _completion(answer) or json.dumps(answer, ensure_ascii=False)
    return asked, answer if isinstance(answer, str) else None


def _labelled(said: object, reason: object) -> object:
    """A label, with its reason where there is one, or a set of labels, as a teacher would write them."""
    answer = {"rationale": reason} if isinstance(reason, str) else {}
    if isinstance(said, list) and all(isinstance(name, str) for name in said):
        return {**answer, "labels": said}
    return {**answer, "label": said} if answer and isinstance(said, str) else said


def _text(content: object) -> str | None:
    """A message's text; parts of text are put together."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str)) or None
    return content if isinstance(content, str) else None


def _completion(response: object) -> str | None:
    """The text of a chat completion, or of a batch line's `body`."""
    found = _dict(response)
    try:
        return _text((_dict(found.get("body")) or found)["choices"][0]["message"]["content"])
    except (LookupError, TypeError):
        return None


def _usage(record: Mapping[str, Any]) -> dict[str, int] | None:
    response = _dict(record.get("response"))
    keys = ("prompt_tokens", "completion_tokens")
    for place in (_dict(response.get("body")), response, record):
        usage = _dict(place.get("usage"))
        if all(type(usage.get(key)) is int for key in keys):
            return {key: usage[key] for key in keys}
    return None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
