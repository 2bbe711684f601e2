"""A teacher whose answers were recorded: one JSON object a line, found again by the row's text. Sends nothing."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row, read_records, row_id
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher import Annotation, Rejection
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import sha256_file


class ReplayTeacher:
    """Answers from a file with the fields text, label, and where known rationale, probabilities, usage, raw."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        """Read all recorded answers.

        Raises:
            EdgestillError: the file is missing or not JSON lines, or a record has no text.
        """
        self.name = recipe.teacher.model or f"recorded answers ({path.name})"
        if not path.is_file():
            raise EdgestillError(f"teacher.path: no file {path}", "name a JSON-lines file of recorded answers")
        self._labels = list(recipe.task.labels)
        self.fingerprint = sha256_file(path)
        self._answers: dict[str, dict[str, Any]] = {}
        for where, record in read_records(str(path), "train"):
            if not isinstance(record.get("text"), str):
                raise EdgestillError(f"{where}: no field 'text', found {sorted(record)}", "mend the recorded answers")
            _check(where, record)
            self._answers[row_id(record["text"].strip())] = record

    def answer(self, row: Row) -> Annotation | Rejection:
        """The recorded answer; rejected as not_recorded, unparsable or label_not_allowed where it is not usable."""
        record = self._answers.get(row_id(row.text))
        if record is None:
            return Rejection(row.id, "not_recorded", "no recorded answer for this text", "")
        raw = record.get("raw") or json.dumps(record, ensure_ascii=False)
        label = record.get("label")
        if not isinstance(label, str):
            return Rejection(row.id, "unparsable", f"label is {label!r}", raw)
        if label not in self._labels:
            return Rejection(row.id, "label_not_allowed", f"label is {label!r}", raw)
        usage = record.get("usage") or {}
        return Annotation(
            row_id=row.id,
            label=label,
            probabilities=_distribution(record.get("probabilities"), self._labels),
            rationale=str(record["rationale"]).strip() or None if record.get("rationale") else None,
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            latency_ms=None,
            raw=raw,
        )


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


def _distribution(found: object, labels: list[str]) -> dict[str, float] | None:
    """Probabilities over all labels, summing to 1; what was left over is spread evenly over the unnamed labels."""
    if not isinstance(found, Mapping) or not found or not set(found) <= set(labels):
        return None
    named = {str(label): float(p) for label, p in found.items()}
    if min(named.values()) < 0 or sum(named.values()) <= 0:
        return None
    unnamed = [label for label in labels if label not in named]
    rest = max(0.0, 1.0 - sum(named.values())) / len(unnamed) if unnamed else 0.0
    full = {label: named.get(label, rest) for label in labels}
    total = sum(full.values())
    return {label: p / total for label, p in full.items()}
