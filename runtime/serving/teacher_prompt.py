"""How the teacher was asked, as the bundle's teacher_prompt.json keeps it, and a text found again in such messages.

Runs no model. Written when a student is trained, read by the server: an app that asked the teacher asks the student.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.runtime import manifest
from edgestill.runtime.choices import split_choices
from edgestill.runtime.task import Task, template_fields

FILE_NAME = "teacher_prompt.json"
ANSWER_KEYS = ("label", "labels", "answer")
REASON_KEYS = ("rationale", "reason", "explanation")

Said = tuple[str, str]


@dataclass(frozen=True)
class Turn:
    """One message: `before`, then `template` with its fields filled in, then `after`; only `template` has fields."""

    role: str
    before: str
    template: str = ""
    after: str = ""


@dataclass(frozen=True)
class Template:
    """The messages of one request and the keys of the JSON object it asks for, in order; no keys: the bare answer.

    Without `whole`, other turns may come before these.
    """

    turns: tuple[Turn, ...]
    keys: tuple[str, ...]
    whole: bool = True


@dataclass(frozen=True)
class TeacherPrompt:
    """Every way in which the teacher is asked; the first is the recipe's own.

    `model` is the teacher's id, None where it is not known. After an answer that could not be used the teacher is
    shown it and asked again, with a turn that begins with `repair`.
    """

    model: str | None
    templates: tuple[Template, ...]
    repair: str
    schema: str = "edgestill-teacher-prompt/1"


@dataclass(frozen=True)
class Found:
    """The fields that stand in some messages, a row's choices as a list, and the keys that are asked for."""

    fields: Mapping[str, Any]
    keys: tuple[str, ...]


def load_teacher_prompt(folder: Path) -> TeacherPrompt | None:
    """The bundle's; None where it was built without one."""
    path = folder / FILE_NAME
    return manifest.load(TeacherPrompt, path) if path.is_file() else None


def answer_keys(task: Task) -> tuple[str, ...]:
    """Keys under which a teacher's object may hold the answer, the task's own first."""
    if task.is_written:
        return ("answer",)
    return ("labels", "label") if task.is_multilabel else ("label", "labels")


def find(prompt: TeacherPrompt, messages: Sequence[Said], choices: str | None = None) -> Found | None:
    """The fields in messages, (role, text) each, that are one of the prompt's templates; None where they are none.

    `choices` names the field of a row's own choices, which stand below its text.
    """
    turns = list(messages)
    while len(turns) > 2 and turns[-1][0] == "user" and turns[-1][1].startswith(prompt.repair):
        turns = turns[:-2]
    for template in prompt.templates:
        part = turns if template.whole else turns[-len(template.turns) :]
        if [role for role, _ in part] != [turn.role for turn in template.turns]:
            continue
        each = [_in_turn(turn, text, choices) for turn, (_, text) in zip(template.turns, part, strict=True)]
        if all(fields is not None for fields in each):
            return Found({name: value for fields in each if fields for name, value in fields.items()}, template.keys)
    return None


def _in_turn(turn: Turn, text: str, choices: str | None) -> dict[str, Any] | None:
    before, after, text = turn.before.lstrip(), turn.after.rstrip(), text.strip()
    if not turn.template:
        return {} if text == (before + after).strip() else None
    if len(text) < len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
        return None
    return fields_with_choices(turn.template, text[len(before) : len(text) - len(after)], choices)


def fields_with_choices(template: str, text: str, choices: str | None) -> dict[str, Any] | None:
    """`fields_in`, of a task with choices those of the text above them and the list itself under the name `choices`."""
    if choices is None:
        return fields_in(template, text)
    above, found = split_choices(text.strip())
    fields = fields_in(template, above) if found else None
    return None if fields is None else {**fields, choices: found}


def fields_in(template: str, text: str) -> dict[str, str] | None:
    """The fields with which `template` gives `text`, outer blanks aside; None where there are none.

    Where several ways of parting the text do, each field but the last is as short as can be. Takes time linear in the
    text.
    """
    names = template_fields(template)
    parts = re.split("(" + "|".join(re.escape("{" + name + "}") for name in names) + ")", template.strip())
    literals, fields = parts[::2], [part[1:-1] for part in parts[1::2]]
    text = text.strip()
    # where the first or the last field is empty, the blanks beside it were taken off with the outer ones
    head = "" if literals[0] or len(literals) < 3 else _blanks(literals[1], of_start=True)
    tail = "" if literals[-1] or len(literals) < 3 else _blanks(literals[-2], of_start=False)
    for whole in dict.fromkeys((text, text + tail, head + text, head + text + tail)):
        found = _parted(literals, fields, whole)
        if found is not None:
            return found
    return None


def _blanks(literal: str, of_start: bool) -> str:
    return literal[: len(literal) - len(literal.lstrip())] if of_start else literal[len(literal.rstrip()) :]


def _parted(literals: Sequence[str], fields: Sequence[str], text: str) -> dict[str, str] | None:
    """`text` cut at the first place of each literal after the one before; one field has one value."""
    if not text.startswith(literals[0]):
        return None
    found: dict[str, str] = {}
    at = len(literals[0])
    for place, (name, literal) in enumerate(zip(fields, literals[1:], strict=True)):
        last = place == len(fields) - 1
        end = len(text) - len(literal) if last else text.find(literal, at)
        if end < at or (last and not text.endswith(literal)):
            return None
        if found.setdefault(name, text[at:end]) != text[at:end]:
            return None
        at = end + len(literal)
    return found
