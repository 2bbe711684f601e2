"""The training loop: seeded batches, AdamW, accumulation, several processes, checkpoints. Knows no model and no loss.

A batch is cut into passes. The loss of each is divided by what the whole batch holds, so that neither the number of
passes nor the number of processes that share them changes what is learnt, and each pass seeds torch's generator by its
place, so that dropout falls alike wherever and whenever the pass is computed. A sieve may say, when a batch's turn has
come, which of its rows are learnt from: a step without any leaves the weights alone, and the schedule goes on.
"""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from edgestill.distill.student.processes import Processes
from edgestill.distill.student_section import TrainSection

WARMUP_SHARE = 0.06
FINAL_RATE_SHARE = 0.02
MAX_GRADIENT_NORM = 1.0
CHECKPOINT_S = 60.0

Row = TypeVar("Row")
RowIn = TypeVar("RowIn", contravariant=True)
Progress = Callable[[int, int], None]
Mass = tuple[float, float]


class Learner(Protocol[RowIn]):
    """A student in training. `RowIn` is one prepared row of its kind."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained, float32."""

    @property
    def rates(self) -> list[float]:
        """How fast each of `parameters` learns, as a multiple of the learning rate."""

    def tokens(self, row: RowIn) -> int:
        """Token positions that a row takes in a pass."""

    def mass(self, rows: Sequence[RowIn]) -> Mass:
        """(label, rationale): how much of each a batch holds, which its losses are divided by."""

    def loss(self, rows: Sequence[RowIn], mass: Mass) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass: (the share of the batch's loss, a detached (2,) of its label and rationale parts in nats)."""


class Sieve(Protocol):
    """What is learnt from of a batch: is asked at every step, in order, once a whole batch, by every process alike.

    What is drawn for a batch are the training's rows; those that come out are the learner's.
    """

    def tokens(self, drawn: Any) -> int:
        """Token positions that what was drawn takes if it is learnt from."""

    def sift(self, drawn: Sequence[Any], processes: Processes) -> Sequence[Any]:
        """The rows that the step is taken on, perhaps none."""

    def state(self) -> dict[str, Any]:
        """What `restore` wants, of plain numbers, lists and mappings."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


class EveryRow:
    """All of them, as they were drawn."""

    def __init__(self, learner: Learner[Any]) -> None:
        """`learner` tells what a row takes."""
        self.tokens = learner.tokens

    def sift(self, drawn: Sequence[Any], processes: Processes) -> Sequence[Any]:
        """The batch."""
        del processes
        return drawn

    def state(self) -> dict[str, Any]:
        """None to speak of."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""


@dataclass
class Loop:
    """Where a training stands: steps done, (2,) losses of each, seconds, tokens of all passes so far.

    `tokens` went through the model with gradients, `drawn_tokens` would have without a sieve.
    """

    losses: list[torch.Tensor]
    seconds: float = 0.0
    tokens: int = 0
    drawn_tokens: int = 0
    resumed_at_step: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Where a training leaves its state now and then, and whose state it is."""

    path: Path
    inputs_sha256: str
    every_s: float = CHECKPOINT_S


class Training(Generic[Row]):
    """One run of the loop over prepared rows."""

    def __init__(
        self,
        learner: Learner[Row],
        rows: Sequence[Row],
        train: TrainSection,
        checkpoint: Checkpoint | None = None,
        sieve: Sieve | None = None,
    ) -> None:
        """`train` has been settled: no None among epochs, learning rate and batch rows.

        With a `sieve`, `rows` are what it takes; without one they are the learner's.

        Raises:
            OSError: later, in `run`, when a checkpoint cannot be written.
        """
        assert train.epochs is not None
        assert train.learning_rate is not None
        assert train.batch_rows is not None
        self.learner, self.train, self.checkpoint = learner, train, checkpoint
        self.processes = Processes()
        self.sieve: Sieve = sieve or EveryRow(learner)
        self.batches = _batches(list(rows), train.epochs, train.batch_rows, train.seed)
        self.parameters = learner.parameters
        self.rate: float = train.learning_rate
        groups = [{"params": [p], "share": r} for p, r in zip(self.parameters, learner.rates, strict=True)]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, weight_decay=0.0, fused=True)

    def run(self, progress: Progress = lambda done, total: None) -> Loop:
        """All steps that are not done yet; progress is told (tokens drawn so far, all) after each."""
        state = self._resume()
        total = sum(self.sieve.tokens(row) for batch in self.batches for row in batch)
        seconds_before, start = state.seconds, time.perf_counter()
        saved = start
        for step in range(len(state.losses), len(self.batches)):
            batch = self.sieve.sift(self.batches[step], self.processes)
            state.losses.append(self._step(step, batch) if batch else torch.full((2,), torch.nan))
            state.tokens += sum(map(self.learner.tokens, batch))
            state.drawn_tokens += sum(map(self.sieve.tokens, self.batches[step]))
            now = time.perf_counter()
            state.seconds = seconds_before + now - start
            progress(state.drawn_tokens, total)
            if self.checkpoint is not None and now - saved >= self.checkpoint.every_s:
                self._save(state)
                saved = time.perf_counter()
        return state

    def _step(self, step: int, batch: Sequence[Row]) -> torch.Tensor:
        """One step of the optimizer; (2,) label and rationale loss, nan where the batch has none."""
        mass = self.learner.mass(batch)
        parts = torch.zeros(2)
        for number, rows in self._passes(batch):
            torch.manual_seed(((self.train.seed << 40) + (step << 12) + number) % 2**63)
            loss, found = self.learner.loss(rows, mass)
            loss.backward()
            parts += found
        self.processes.add_gradients(self.parameters)
        parts = self.processes.add(parts)
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["share"] * _rate_share(step, len(self.batches))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.where(torch.tensor(mass) > 0, parts, torch.nan)

    def _passes(self, batch: Sequence[Row]) -> list[tuple[int, Sequence[Row]]]:
        """The share of a batch that falls to this process: (number in the batch, rows) of each pass."""
        size = min(self.train.pass_rows or len(batch), math.ceil(len(batch) / self.processes.count))
        passes = [batch[i : i + size] for i in range(0, len(batch), size)]
        return [(i, rows) for i, rows in enumerate(passes) if i % self.processes.count == self.processes.index]

    def _resume(self) -> Loop:
        """The state that an earlier run of the same inputs left, or a new one."""
        if self.checkpoint is None or not self.checkpoint.path.exists():
            return Loop([])
        kept: dict[str, Any] = torch.load(self.checkpoint.path, weights_only=True)
        if kept["inputs_sha256"] != self.checkpoint.inputs_sha256:
            return Loop([])
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(kept["optimizer"])
        self.sieve.restore(kept.get("sieve", {}))
        losses, drawn = list(kept["losses"]), kept.get("drawn_tokens", kept["tokens"])  # versions before had no sieve
        return Loop(losses, kept["seconds"], kept["tokens"], drawn, resumed_at_step=len(losses))

    def _save(self, state: Loop) -> None:
        if self.checkpoint is None or self.processes.index > 0:
            return
        facts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        weights = {"parameters": [p.detach() for p in self.parameters], "optimizer": self.optimizer.state_dict()}
        own = {"sieve": self.sieve.state(), "inputs_sha256": self.checkpoint.inputs_sha256}
        partial = self.checkpoint.path.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**facts, **weights, **own}, partial)
        partial.replace(self.checkpoint.path)


def _batches(rows: list[Row], epochs: float, batch_rows: int, seed: int) -> list[list[Row]]:
    """Every epoch a fresh seeded order; a fraction of an epoch takes that share of its batches."""
    rng = random.Random(seed)
    batches: list[list[Row]] = []
    for _ in range(math.ceil(epochs)):
        order = rng.sample(range(len(rows)), len(rows))
        chosen = [rows[i] for i in order]
        batches += [chosen[i : i + batch_rows] for i in range(0, len(chosen), batch_rows)]
    per_epoch = math.ceil(len(rows) / batch_rows)
    return batches[: max(1, round(epochs * per_epoch))]


def _rate_share(step: int, steps: int) -> float:
    warmup = min(1.0, (step + 1) / max(1.0, WARMUP_SHARE * steps))
    return warmup * max(FINAL_RATE_SHARE, 1 - step / steps)
