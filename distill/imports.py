"""Stored answers of any common shape become rows and a replay teacher. Reads files, asks nobody, judges no label.

How the answers were asked for is kept beside them in asked.json, so that the student's server knows the questions.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import read_records, row_id
from edgestill.distill.teacher.parse import objects_in
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.serving.teacher_prompt import ANSWER_KEYS, REASON_KEYS, Template, Turn

ASKED_NAME = "asked.json"
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
    """Write `folder`/pool.jsonl (rows), teacher.jsonl (text, raw, usage) and asked.json from stored answers.

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
    read, skipped, kept, systems = 0, Counter[str](), dict[str, dict[str, Any]](), set[str | None]()
    for record in _records(source):
        read += 1
        body = asked.get(str(record.get("custom_id")))
        whole = {"request": body, **record} if body else record
        answer = _answer(whole, pattern)
        if isinstance(answer, str):
            skipped[answer] += 1
        elif kept.setdefault(row_id(answer["text"]), answer) is not answer:
            skipped[AGAIN] += 1
        else:
            systems.add(_system(whole))
    if not kept:
        reasons = ", ".join(f"{count}: {why}" for why, count in skipped.items())
        raise UsageError(f"{source}: none of {read} records can be used ({reasons})", "type: edgestill import --help")
    keys = Counter(_keys(answer["raw"]) for answer in kept.values()).most_common(1)[0][0]
    _write(folder, list(kept.values()), _template(prompt, systems, keys))
    return Imported(read, len(kept), dict(skipped))


def _records(source: Path) -> Iterator[dict[str, Any]]:
    if not source.is_file():
        raise EdgestillError(f"no file {source}", "name a .jsonl, .csv or .parquet file")
    return (record for _, record in read_records(str(source), "train"))


def read_asked(teacher: Path) -> Template | None:
    """How the imported answers in the file `teacher` were asked for; None where they were not imported."""
    path = teacher.with_name(ASKED_NAME)
    return manifest.load(Template, path) if path.is_file() else None


def _template(prompt: str, systems: set[str | None], keys: tuple[str, ...]) -> Template:
    """The turns before an answer: with the system turn where all had the same and one question, else with any."""
    before, _, after = prompt.partition("{text}")
    user = Turn("user", before, "{text}", after)
    (system,) = systems if len(systems) == 1 else (None,)
    if system:
        return Template((Turn("system", system), user), keys, whole=False)
    return Template((user,), keys, whole=system is not None)


def _system(record: Mapping[str, Any]) -> str | None:
    """The system turn of a record's messages, "" where they have none.

    None of a record without messages, and where examples or other turns stand before the question.
    """
    request = _dict(record.get("request")) or _dict(record.get("body")) or record
    messages = request.get("messages") or request.get("input")
    if not isinstance(messages, list):
        return None
    said = [m for m in messages if isinstance(m, dict)]
    if sum(m.get("role") == "user" for m in said) > 1:
        return None
    turns = [m for m in said if m.get("role") in ("system", "developer")]
    return (_text(turns[-1].get("content")) or "").strip() if turns else ""


def _keys(raw: str) -> tuple[str, ...]:
    """Keys of the object that holds an answer's label; none of another answer."""
    answer = next((found for found in objects_in(raw) if set(found) & set(ANSWER_KEYS)), {})
    return tuple(key for key in answer if key in (*ANSWER_KEYS, *REASON_KEYS))


def _write(folder: Path, answers: list[dict[str, Any]], asked: Template) -> None:
    """All files in a folder beside, which then gets its name: a folder with the name is whole."""
    partial = folder.with_name(folder.name + manifest.PARTIAL_SUFFIX)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        manifest.write_jsonl(partial / "teacher.jsonl", answers)
        manifest.write_jsonl(partial / "pool.jsonl", ({"text": answer["text"]} for answer in answers))
        manifest.save(partial / ASKED_NAME, asked)
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
