"""Stored answers of any common shape become rows and a replay teacher. Reads one file, asks nobody, judges no label."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import read_records, row_id
from edgestill.runtime import manifest
from edgestill.runtime.errors import UsageError

ASKED = ("prompt", "input", "question", "text")
ANSWERED = ("completion", "response", "answer", "output", "label")


@dataclass(frozen=True)
class Imported:
    """What was read, kept, and left out by reason."""

    read: int
    kept: int
    skipped: dict[str, int]


def import_answers(source: Path, folder: Path, prompt: str = "{text}") -> Imported:
    """Write `folder`/pool.jsonl (rows) and `folder`/teacher.jsonl (text, raw, usage) from stored answers.

    Records may be chat completions with their messages (`messages` and `choices`; `request` and `response`; messages
    that end with the assistant's) or pairs (`prompt` and `completion`, `input` and `output`, ...).

    Args:
        source: a .jsonl, .csv or .parquet file.
        folder: new.
        prompt: how a row became the last user message; `{text}` stands for the row.

    Raises:
        UsageError: `folder` is there already, or `prompt` has no `{text}`.
        EdgestillError: `source` cannot be read.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already", "name a new folder")
    if prompt.count("{text}") != 1:
        raise UsageError(f"--prompt {prompt!r} wants {{text}} once", 'such as --prompt "Classify: {text}"')
    pattern = re.compile("(.+)".join(re.escape(part) for part in prompt.strip().split("{text}")), re.DOTALL)
    read, skipped, kept = 0, Counter[str](), dict[str, dict[str, Any]]()
    for _, record in read_records(str(source), "train"):
        read += 1
        asked, said = _pair(record)
        match = pattern.fullmatch(asked.strip()) if asked else None
        if asked is None or said is None:
            skipped["no prompt or no answer in it"] += 1
        elif match is None:
            skipped["its prompt does not match --prompt"] += 1
        elif row_id(match[1]) in kept:
            skipped["the same text was there before"] += 1
        else:
            answer = {"text": match[1].strip(), "raw": said, "usage": _usage(record)}
            kept[row_id(match[1])] = {key: value for key, value in answer.items() if value is not None}
    if not kept:
        raise UsageError(
            f"{source}: none of {read} records can be used: {dict(skipped)}", "see edgestill import --help"
        )
    manifest.write_jsonl(folder / "teacher.jsonl", kept.values())
    manifest.write_jsonl(folder / "pool.jsonl", ({"text": answer["text"]} for answer in kept.values()))
    return Imported(read, len(kept), dict(skipped))


def _pair(record: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(what the user said last, what was answered); None for what is not there."""
    request, response = record.get("request") or record, record.get("response") or record
    messages = request.get("messages") or request.get("input") if isinstance(request, dict) else None
    if isinstance(messages, list):
        said = _completion(response)
        turns = [m for m in messages if isinstance(m, dict) and isinstance(m.get("content"), str)]
        if said is None and turns and turns[-1].get("role") == "assistant":
            said = turns[-1]["content"]
        users = [m["content"] for m in turns if m.get("role") == "user"]
        return (users[-1] if users else None), said
    asked = next((record[key] for key in ASKED if isinstance(record.get(key), str)), None)
    answer = next((record[key] for key in ANSWERED if record.get(key)), None)
    if isinstance(answer, dict):
        return asked, _completion(answer) or json.dumps(answer, ensure_ascii=False)
    return asked, answer if isinstance(answer, str) else None


def _completion(response: Any) -> str | None:
    if isinstance(response, dict) and isinstance(response.get("body"), dict):
        response = response["body"]
    try:
        content = response["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        return None
    return content if isinstance(content, str) else None


def _usage(record: Mapping[str, Any]) -> dict[str, int] | None:
    response = record.get("response")
    inner = response if isinstance(response, dict) else record
    usage = inner.get("usage") or (inner.get("body") or {}).get("usage") if isinstance(inner, dict) else None
    keys = ("prompt_tokens", "completion_tokens")
    if not isinstance(usage, dict) or not all(type(usage.get(key)) is int for key in keys):
        return None
    return {key: usage[key] for key in keys}
