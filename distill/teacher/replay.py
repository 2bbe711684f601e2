"""A teacher whose answers were recorded: one JSON object a line, found again by the row's text. Sends nothing."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row, read_records, row_id, with_own_choices
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.forms import form_of
from edgestill.distill.teacher.parse import Reading
from edgestill.distill.teacher.protocol import Annotation, Rejection, Spending, Told
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import sha256_file
from edgestill.runtime.task import redacted


class ReplayTeacher:
    """Answers from a file with text, one of label, answer and raw, and where known rationale, probabilities, usage.

    Where a row has a set of labels, `label` is a list of them, or text with bars between them. Where it has choices,
    they stand below its text or in the field that the recipe names.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        """Read all recorded answers.

        Raises:
            EdgestillError: the file is missing or not JSON lines, or a record has no text.
        """
        self.name = recipe.teacher.model or f"recorded answers ({path.name})"
        self.fingerprint = replay_fingerprint(path)
        self._task, self._form = recipe.task, form_of(recipe.task)
        self._answers: dict[str, dict[str, Any]] = {}
        for where, record in read_records(str(path), "train"):
            if not isinstance(record.get("text"), str):
                raise EdgestillError(f"{where}: no field 'text', found {sorted(record)}", "mend the recorded answers")
            _check(where, record)
            self._answers[row_id(redacted(self._text(where, record), recipe.teacher.redact)[0])] = record

    def _text(self, where: str, record: dict[str, Any]) -> str:
        """The text of the row that a record answers."""
        text, field = record["text"].strip(), self._task.choices
        try:
            return with_own_choices(text, record, self._task) if field is not None and field in record else text
        except EdgestillError as error:
            raise EdgestillError(f"{where}: {error.message}", "mend the recorded answers") from None

    def ask(self, rows: Iterable[Row], told: Told) -> None:
        """Nothing to ask: all answers are there."""
        told(sum(1 for _ in rows))

    def answer(self, row: Row) -> Annotation | Rejection:
        """The recorded answer; rejected as not_recorded or as its text is read where it is not usable."""
        record = self._answers.get(row_id(row.text))
        if record is None:
            return Rejection(row.id, "not_recorded", "no recorded answer for this text", "")
        usage, raw = record.get("usage") or {}, record.get("raw") or json.dumps(record, ensure_ascii=False)
        reading = self._read(record, row.text)
        tokens = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        if reading.label is None:
            return Rejection(row.id, str(reading.reason), reading.detail, raw, *tokens)
        told = record.get("probabilities") if self._form.tells_odds else None
        odds = _distribution(told, self._form.labels, self._form.options(row.text))
        return Annotation(row.id, reading.label, odds, reading.rationale, *tokens, None, raw, requests=1)

    def _read(self, record: dict[str, Any], text: str) -> Reading:
        key = next((key for key in ("label", "answer") if key in record), None)
        if key is None and isinstance(record.get("raw"), str):
            return self._form.read(record["raw"], text)
        said = None if key is None else record[key]
        if not isinstance(said, self._form.fields) or isinstance(said, bool):
            return Reading(reason="unparsable", detail=f"{key or 'label'} is {said!r}")
        try:
            label = self._task.read(said, text)
        except EdgestillError:
            return Reading(reason="label_not_allowed", detail=f"{key} is {said!r}")
        return Reading(label, str(record["rationale"]).strip() or None if record.get("rationale") else None)

    def spending(self) -> Spending:
        """Nothing is sent, so nothing is spent."""
        return Spending(0, "0", {}, 0)

    def spent_so_far(self) -> str:
        """Nothing."""
        return "recorded"

    def close(self) -> None:
        """Nothing is held open."""


def replay_fingerprint(path: Path) -> str:
    """Hash of the recorded answers.

    Raises:
        EdgestillError: no such file.
    """
    if not path.is_file():
        raise EdgestillError(f"teacher.path: no file {path}", "name a JSON-lines file of recorded answers")
    return sha256_file(path)


def _check(where: str, record: dict[str, Any]) -> None:
    """Refuse a record whose optional fields are of another kind than they should be."""
    usage, chances = record.get("usage") or {}, record.get("probabilities") or {}
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else ["?"]
    if not all(count is None or type(count) is int for count in counts):
        raise EdgestillError(f"{where}: usage is {usage!r:.80}, wanted prompt_tokens and completion_tokens as numbers")
    values = chances.values() if isinstance(chances, dict) else ["?"]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise EdgestillError(f"{where}: probabilities are {chances!r:.80}, wanted a number for each label")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise EdgestillError(f"{where}: half a surrogate pair, which is no text", "mend the recorded answers") from None


def _distribution(found: object, labels: Sequence[str], options: Sequence[str]) -> dict[str, float] | None:
    """Probabilities over all labels, summing to 1, of which those that are no `options` of the row get 0.

    What was left over is spread evenly over the unnamed options.
    """
    if not isinstance(found, Mapping) or not found or not set(found) <= set(labels):
        return None
    named = {str(label): float(p) for label, p in found.items()}
    if min(named.values()) < 0 or sum(named.values()) <= 0:
        return None
    unnamed = [label for label in options if label not in named]
    rest = max(0.0, 1.0 - sum(named.values())) / len(unnamed) if unnamed else 0.0
    full = {label: named.get(label, rest) if label in options else 0.0 for label in labels}
    total = sum(full.values())
    return {label: p / total for label, p in full.items()} if total > 0 else None
