"""What decides at each step of training which rows of the batch count, and how much; and the account of it.

The gate is asked once a whole batch, before it is cut into passes; several processes share the forward for it and see
the same numbers, so all decide alike. Knows no model but what its learner tells.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgestill.distill.dataset import Row
from edgestill.distill.student.processes import Processes
from edgestill.distill.teacher.protocol import Annotation

Floats = NDArray[np.float64]
Pair = tuple[Row, Annotation]


class Gate(Protocol):
    """Is asked at every step, in order; may keep state, which `state` and `restore` carry over a checkpoint."""

    def check(self, answers: Sequence[Annotation]) -> None:
        """Refuse, before anything is trained, answers that it cannot decide by.

        Raises:
            EdgestillError: what it lacks, and who gives that.
        """

    def weights(self, answers: Sequence[Annotation], chances: Floats) -> Floats:
        """How much each of B rows counts, 0 for not at all, given the student's probabilities (B, L) now."""

    def state(self) -> dict[str, Any]:
        """What `restore` wants, of plain numbers and lists."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""

    def facts(self) -> dict[str, Any]:
        """Where it stands, for the run's manifest: its thresholds."""


class Scorer(Protocol):
    """What a gate wants of a student in training: its probabilities now, and what they cost."""

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """(R, L), without gradients and dropout; the model is left as it was."""

    def question(self, text: str) -> Any:
        """A row that nobody has answered, as `tokens` takes it."""

    def tokens(self, row: Any) -> int:
        """Token positions that a row takes."""


class Account:
    """What a gate let through so far: how many rows each step, which ones and when first, tokens of its forwards."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.selected: list[int] = []
        self.used: dict[str, list[int]] = {}
        self.forward_tokens = 0

    def add(self, row_ids: Sequence[str], forward_tokens: int) -> None:
        """One step: the rows that it was taken on, and the tokens of the forward that decided so."""
        for row_id in row_ids:
            self.used.setdefault(row_id, [len(self.selected), 0])[1] += 1
        self.selected.append(len(row_ids))
        self.forward_tokens += forward_tokens


class GatedRows:
    """A training's rows behind a gate: a `loop.Sieve` over their places."""

    def __init__(self, gate: Gate, learner: Scorer, rows: Sequence[Any], pairs: Sequence[Pair]) -> None:
        """`rows` are the learner's, prepared from `pairs`: dataclasses with a `weight`, which is multiplied."""
        self.gate, self.learner, self.rows, self.pairs = gate, learner, rows, pairs
        self.account = Account()
        self._question_tokens = [learner.tokens(learner.question(row.text)) for row, _ in pairs]

    def tokens(self, place: int) -> int:
        """Of the row at a place, if it is selected."""
        return self.learner.tokens(self.rows[place])

    def sift(self, places: Sequence[int], processes: Processes) -> list[Any]:
        """The rows of a batch that count, each with its weight; perhaps none."""
        chances = shared_probabilities(self.learner, [self.pairs[place][0].text for place in places], processes)
        weights = self.gate.weights([self.pairs[place][1] for place in places], chances)
        chosen = [(place, weight) for place, weight in zip(places, weights.tolist(), strict=True) if weight > 0]
        asked_tokens = sum(self._question_tokens[place] for place in places)
        self.account.add([self.pairs[place][0].id for place, _ in chosen], asked_tokens)
        return [weighted(self.rows[place], weight) for place, weight in chosen]

    def state(self) -> dict[str, Any]:
        """The gate's and the account's."""
        return {"gate": self.gate.state(), "account": vars(self.account)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.gate.restore(state["gate"])
        vars(self.account).update(state["account"])

    def facts(self) -> dict[str, Any]:
        """For the manifest: unique rows ever used, their share of the pool, how many of each label, and what it took.

        `selected_per_step` is the mean number of rows of a step, `empty_steps` those without any, `forward_tokens` the
        positions that went through the model without gradients to decide.
        """
        labels = Counter(answer.label for _, answer in self.pairs)
        used = Counter(answer.label for row, answer in self.pairs if row.id in self.account.used)
        selected = self.account.selected
        return {
            "rows_used": used.total(),
            "share_used": used.total() / len(self.pairs) if self.pairs else None,
            "rows_used_by_label": {label: used[label] for label in sorted(labels)},
            "rows_by_label": dict(sorted(labels.items())),
            "selected_per_step": sum(selected) / len(selected) if selected else None,
            "empty_steps": selected.count(0),
            "forward_tokens": self.account.forward_tokens,
            **self.gate.facts(),
        }

    def used_rows(self) -> Iterator[dict[str, Any]]:
        """A line a row that was ever used, in reading order: id, the teacher's label, first step, number of steps."""
        for row, answer in self.pairs:
            if row.id in self.account.used:
                first, steps = self.account.used[row.id]
                yield {"id": row.id, "label": answer.label, "first_step": first, "steps": steps}


def shared_probabilities(learner: Scorer, texts: Sequence[str], processes: Processes) -> Floats:
    """(B, L) of a batch: each process computes its share of the rows, and all see the same numbers."""
    if processes.count == 1:
        return learner.probabilities(texts)
    own = learner.probabilities(texts[processes.index :: processes.count])
    found = np.zeros((len(texts), own.shape[1]))
    found[processes.index :: processes.count] = own
    return processes.add(torch.from_numpy(found)).numpy()


def weighted(row: Any, weight: float) -> Any:
    """A prepared row that counts `weight` times as much."""
    return dataclasses.replace(row, weight=row.weight * weight)
