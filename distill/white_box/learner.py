"""A decoder that learns from a local teacher's distributions beside its words; see `section`. No loop."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgestill.distill.base import Base
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.causal import CausalLearner
from edgestill.distill.student.loop import Mass
from edgestill.distill.student.objectives import label_rationale_loss, token_losses
from edgestill.distill.student.packing import Example, Packed, pack
from edgestill.distill.student.processes import Processes
from edgestill.distill.student.writing import write
from edgestill.distill.teacher.protocol import Annotation
from edgestill.distill.white_box.divergences import Wanted, Whole, head_divergences, measure_of
from edgestill.distill.white_box.features import Features, layer_pairs
from edgestill.distill.white_box.on_policy import row_generator, sampler, stand_in
from edgestill.distill.white_box.teacher import (
    LocalTeacher,
    Paired,
    find_teacher,
    layer_states,
    teacher_prompt,
    token_count,
)
from edgestill.distill.white_box.teacher_logits import (
    LOGITS_VERSION,
    StoredLogits,
    TopK,
    joined_rows,
    store,
    top_k,
)
from edgestill.runtime import manifest
from edgestill.runtime.task import Task

TEACHER_ROWS = 16  # of a pass when distributions are stored


@dataclass(frozen=True)
class Shares:
    """What of a pass counts how much, before its mass is divided by.

    `words` (N,) is what a position's cross-entropy is multiplied by, `apart` (M,) its divergence, at the positions `at`
    (M,), which are those of `taught`, in order.
    """

    words: Tensor
    apart: Tensor
    at: Tensor
    taught: Sequence[Paired]


class WhiteBoxLearner(CausalLearner):
    """A base with a fresh adapter, and a teacher; see `loop.Learner`. The adapter alone is saved."""

    def __init__(self, recipe: Recipe, base: Base, task: Task, tokenizer: Any) -> None:
        """Loads the base, then the teacher where it is needed in every pass.

        Raises:
            EdgestillError: the teacher is not there, does not fit, or cannot be read.
        """
        assert recipe.train.white_box is not None
        self.recipe, self.section = recipe, recipe.train.white_box
        self.teacher_base = find_teacher(recipe, task, tokenizer)  # before the base is loaded: it may be refused
        super().__init__(recipe, base, task, tokenizer)
        self._open = lambda: LocalTeacher(self.teacher_base, recipe, task, tokenizer, self.dtype)
        self._teacher: LocalTeacher | None = None
        self.vocabulary, self.measure = token_count(tokenizer), measure_of(self.section)
        self.features = self._features()
        self._stored: StoredLogits | None = None

    @property
    def teacher(self) -> LocalTeacher:
        """In memory from now on."""
        if self._teacher is None:
            self._teacher = self._open()
        return self._teacher

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapter's, and the projections' of hidden states."""
        return [*super().parameters, *(() if self.features is None else self.features.parameters())]

    def prepare(self, text: str, annotation: Annotation, weight: float) -> Paired:
        """One row in token ids, and the teacher's prompts for it."""
        own = super().prepare(text, annotation, weight)
        suffixes = [self.task.prompt_suffix, self.task.rationale_suffix][: len(own.branches)]
        prompts = [teacher_prompt(self.recipe, self.task, self.tokenizer, text, suffix or "") for suffix in suffixes]
        return Paired(own.label, own.rationale, own.soft, own.weight, tuple(prompts))

    def ask_teacher(self, rows: Sequence[Paired], folder: Path | None) -> list[Paired]:
        """The rows with the teacher's distributions at hand: kept in `folder`, or none, to be asked in each pass.

        Raises:
            EdgestillError: they cannot be written, or a row is too long for the teacher.
        """
        if not self.section.is_stored or folder is None:
            return list(rows)
        counts = [row.positions for row in rows]
        self._stored = store(folder, counts, self._stored_inputs(rows), lambda here: self._top(rows[here]), Processes())
        if not self.section.needs_teacher_in_training:
            self._teacher = None
        return [replace(row, place=place) for place, row in enumerate(rows)]

    def loss(self, rows: Sequence[Example], mass: Mass) -> tuple[Tensor, Tensor]:
        """(1 - w) * as `CausalLearner` + w * the divergence, each position weighed as there, and the features' on top.

        A completion of the student's own stands for the recorded one and weighs as much in all, whatever its length:
        so a batch's mass is known before anything is written. Parts are of the first two, in nats.
        """
        pairs = [row for row in rows if isinstance(row, Paired)]
        examples, shares = self._shares(pairs)
        packed = pack(examples)
        layers = [] if self.features is None else self.features.of_student
        hidden, states = layer_states(self, packed, layers)
        wanted, theirs = self._wanted(shares.taught)
        taught = hidden[shares.at]
        apart = head_divergences(taught, self.head[: self.vocabulary], wanted, self.measure, self.section.temperature)
        losses = torch.zeros(len(hidden)).index_add(0, shares.at, shares.apart * apart)
        if self.section.weight < 1:
            losses = losses + shares.words * token_losses(hidden, self.head, packed)
        loss, parts = self._summed(losses, packed, mass)
        if self.features is not None and self.section.features is not None:
            far = self.features.losses([state[shares.at] for state in states], theirs)
            scaled = shares.apart / self.section.weight * self.section.features.weight * far
            loss = loss + self._summed(torch.zeros(len(hidden)).index_add(0, shares.at, scaled), packed, mass)[0]
        return loss, parts.nan_to_num()

    def _summed(self, losses: Tensor, packed: Packed, mass: Mass) -> tuple[Tensor, Tensor]:
        return label_rationale_loss(losses, packed, self.train.rationale_weight, mass)

    def _shares(self, rows: Sequence[Paired]) -> tuple[list[Paired], Shares]:
        """Rows of a pass, recorded ones first, then what the student wrote instead of some; and what counts."""
        weight = self.section.weight
        generators = [row_generator(row.label.prompt) for row in rows]
        own = [told.random() < self.section.on_policy_fraction for told in generators]
        drawn = [(row, told) for row, told, mine in zip(rows, generators, own, strict=True) if mine]
        written = self._written([row for row, _ in drawn], [told.getrandbits(63) for _, told in drawn])
        kept = [(row, mine) for row, mine in zip(rows, own, strict=True) if weight < 1 or not mine]
        words = [1 - weight] * sum(row.positions for row, _ in kept)
        apart = [0.0 if mine else weight for row, mine in kept for _ in range(row.positions)]
        for row, multiples in written:
            words += [0.0] * row.positions
            apart += [weight * multiple for multiple in multiples]
        factors, samples = torch.tensor(apart), [row for row, _ in written]
        at = factors.nonzero()[:, 0]
        taught = [*(row for row, mine in kept if not mine), *samples]
        return [*(row for row, _ in kept), *samples], Shares(torch.tensor(words), factors[at], at, taught)

    def _written(self, rows: Sequence[Paired], seeds: Sequence[int]) -> list[tuple[Paired, list[float]]]:
        """Each row with completions of the student's own, and what their tokens are multiplied by."""
        branches = [branch for row in rows for branch in row.branches]
        if not branches:
            return []
        each = [seed + place for row, seed in zip(rows, seeds, strict=True) for place in range(len(row.branches))]
        pick = sampler(each, self.vocabulary, self.section.on_policy_temperature)
        prompts = [branch.prompt for branch in branches]
        said = write(self.causal, prompts, self.task.eos_token_id, self.section.on_policy_tokens, pick)
        parts = iter([stand_in(branch, ids) for branch, ids in zip(branches, said, strict=True)])
        found = []
        for row in rows:
            (label, multiples), *reason = [next(parts) for _ in row.branches]
            own = replace(row, label=label, rationale=reason[0][0] if reason else None, soft=None, place=None)
            found.append((own, [*multiples, *(reason[0][1] if reason else [])]))
        return found

    def _wanted(self, rows: Sequence[Paired]) -> tuple[Wanted, list[Tensor]]:
        """The teacher's distributions over the rows' completions, and its hidden states there where they are learnt."""
        if self.section.top_k == "all" or self.features is not None:
            layers = [] if self.features is None else self.features.of_teacher
            hidden, states = self.teacher.states([row.for_teacher() for row in rows], layers)
            if self.section.top_k == "all":
                return Whole(hidden, self.teacher.head, self.section.temperature), states
            return top_k(hidden, self.teacher.head, self.section.top_k, self.section.temperature), states
        parts = [self._stored[row.place] for row in rows if self._stored is not None and row.place is not None]
        rest = rows[len(parts) :]
        return joined_rows([*parts, self._top(rest)] if rest else parts), []

    def _top(self, rows: Sequence[Paired]) -> TopK:
        """The teacher's likeliest tokens, asked now."""
        assert self.section.top_k != "all"
        found = []
        for start in range(0, len(rows), TEACHER_ROWS):
            hidden, _ = self.teacher.states([row.for_teacher() for row in rows[start : start + TEACHER_ROWS]])
            found.append(top_k(hidden, self.teacher.head, self.section.top_k, self.section.temperature))
        return joined_rows(found)

    def _stored_inputs(self, rows: Sequence[Paired]) -> str:
        """Hash of everything that the stored distributions depend on."""
        config = manifest.sha256_file(Path(self.teacher_base.folder) / "config.json")
        teacher = [self.teacher_base.weights_sha256, config, str(self.dtype), self.vocabulary]
        asked = [[row.prompts, [branch.completion for branch in row.branches]] for row in rows]
        return manifest.sha256_json([LOGITS_VERSION, teacher, self.section.stored_as(), asked])

    def _features(self) -> Features | None:
        wanted = self.section.features
        if wanted is None:
            return None
        student, teacher = self.causal.config, self.teacher.rows.causal.config
        pairs = layer_pairs(student.num_hidden_layers, teacher.num_hidden_layers, wanted.pairs)
        return Features(pairs, student.hidden_size, teacher.hidden_size)
