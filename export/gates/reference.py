"""What torch answers on the grid's own numbers: the reference that every file is measured against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import numpy as np

from edgestill.export.build import Logits
from edgestill.runtime import decode
from edgestill.runtime.decode import Probabilities
from edgestill.runtime.session import Logits as Row
from edgestill.runtime.task import Task
from edgestill.runtime.written import Written


@dataclass(frozen=True)
class Reference:
    """One row: `text` (filled), `ids` of its prompt, `logits` (V,) at the answer, of an encoder (L,), from torch.

    `probabilities` (L,) and `label` follow from the logits; `teacher` is the teacher's label, None where the run does
    not keep it. Of a task that generates, `written` is torch's greedy answer, `label` the canonical one in it, and
    `following` holds the logits behind the first tokens of it, one more token each, for the first rows alone.
    """

    text: str
    ids: tuple[int, ...]
    logits: Row
    probabilities: Probabilities
    label: str
    teacher: str | None
    written: Written | None = None
    following: tuple[Row, ...] = ()

    @property
    def positions(self) -> list[tuple[list[int], Row]]:
        """(token ids, torch's logits after them) of every position that is known."""
        ids, said = list(self.ids), self.written.ids if self.written is not None else ()
        return [(ids + list(said[:place]), row) for place, row in enumerate((self.logits, *self.following))]


def references(logits: Logits, task: Task, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> list[Reference]:
    """Torch's answers on rows of `dev.jsonl`: text, and label where the run keeps the teacher's."""
    found = []
    for row in rows:
        ids = task.encode(tokenizer, row["text"])
        values = np.array(logits(ids), np.float32)
        chances, label = answer(values, task, row["text"])
        found.append(Reference(row["text"], tuple(ids), values, chances, label, row.get("label")))
    return found


def answer(logits: Row, task: Task, text: str) -> tuple[Probabilities, str]:
    """((L,) probabilities of the labels, the answer as one text) that logits at a text's answer mean."""
    chances = decode.task_probabilities(logits, task, text)
    return chances, task.written(task.chosen(chances.tolist()))


def by_labels(rows: Sequence[Reference], task: Task) -> tuple[list[Reference], Task]:
    """(rows, task) as a graph sees them whose outputs are the L labels in their order, not the vocabulary."""
    ids = [label.token_id for label in task.labels]
    places = tuple(replace(label, token_id=place) for place, label in enumerate(task.labels))
    return [replace(row, logits=row.logits[ids]) for row in rows], replace(task, labels=places)


def golden_rows(rows: Sequence[Reference], task: Task) -> list[dict[str, Any]]:
    """Lines of golden.jsonl: text, label and the probability of each label; what was written with its confidence."""
    return [
        {
            "text": row.text,
            "label": row.label,
            "probabilities": dict(zip(task.label_names, row.probabilities.tolist(), strict=True)),
            **_as_written(row.written),
        }
        for row in rows
    ]


def _as_written(written: Written | None) -> dict[str, Any]:
    return {} if written is None else {"written": written.text, "confidence": exp(written.logprob_nats)}


def kl_nats(wanted: Row, found: Row, task: Task) -> float:
    """KL divergence in nats of an engine's distribution from torch's at the answer.

    Over all V tokens, of an encoder over its L labels; for sets of labels the mean over the labels' own two outcomes.
    """
    if task.is_multilabel:
        ids = [label.token_id for label in task.labels]
        p, q = (decode.independent_probabilities(x, ids) for x in (wanted, found))
        return (_kl(p, q) + _kl(1 - p, 1 - q)) / len(ids)
    log_p, log_q = decode.log_softmax(wanted), decode.log_softmax(found)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def _kl(p: Probabilities, q: Probabilities) -> float:
    return float((p * np.log(np.maximum(p, 1e-12) / np.maximum(q, 1e-12))).sum())
