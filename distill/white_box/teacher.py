"""A local teacher whose distributions are read: whether it fits the student, and what it is shown.

Its prompt may differ from the student's in length and words; both go on with the same completion, and what they say of
its i-th token is compared, wherever that stands.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgestill.distill.base import Base, read_config
from edgestill.distill.labels import build_task
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.causal import CausalRows, load_causal
from edgestill.distill.student.packing import Branch, Example, pack
from edgestill.distill.teacher.local_model import teacher_base
from edgestill.distill.teacher.priming import primed
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import Task, load_tokenizer

SAME_LOGITS_ABS = 0.05  # head times hidden state beside the model's own logits, bfloat16 included


@dataclasses.dataclass(frozen=True)
class Paired(Example):
    """A row with what stands before its completions in the teacher's context: a prompt a branch.

    `place` is where the teacher's distributions over its completions are stored, None where they are not.
    """

    prompts: tuple[tuple[int, ...], ...] = ()
    place: int | None = None

    @property
    def positions(self) -> int:
        """At how many places there is loss."""
        return sum(len(branch.completion) for branch in self.branches)

    def for_teacher(self) -> Example:
        """The same completions behind the teacher's prompts."""
        pairs = zip(self.prompts, self.branches, strict=True)
        label, *reason = [dataclasses.replace(branch, prompt=prompt) for prompt, branch in pairs]
        return Example(label, reason[0] if reason else None)


def find_teacher(recipe: Recipe, task: Task, tokenizer: Any) -> Base:
    """The recipe's local teacher on disk, once its vocabulary is known to be the student's.

    Raises:
        EdgestillError: it is not there, or its tokens or the special ids around a text differ: names the first that do.
    """
    base = teacher_base(str(recipe.teacher.path), recipe.folder)
    theirs = load_tokenizer(Path(base.folder))
    hint = "name a teacher and a student with one tokenizer, or remove train.white_box"
    difference = first_difference(theirs.get_vocab(), tokenizer.get_vocab())
    if difference is not None:
        raise UsageError(f"train.white_box wants one vocabulary, but {difference}", hint)
    as_theirs = build_task(recipe, base, theirs)
    for name in ("bos_token_id", "eos_token_id"):
        found, wanted = getattr(as_theirs, name), getattr(task, name)
        if found != wanted:
            raise UsageError(f"train.white_box wants one {name}, but the teacher's is {found}, ours {wanted}", hint)
    return base


def first_difference(theirs: dict[str, int], ours: dict[str, int]) -> str | None:
    """In words, the lowest id that two vocabularies (token -> id) give to different tokens; None for equal ones."""
    if theirs == ours:
        return None
    by_id = [{number: token for token, number in vocabulary.items()} for vocabulary in (theirs, ours)]
    least = min(n for n in by_id[0].keys() | by_id[1].keys() if by_id[0].get(n) != by_id[1].get(n))
    named = [repr(side[least]) if least in side else "no token" for side in by_id]
    return f"token {least} is {named[0]} for the teacher, {named[1]} for the student"


def token_count(tokenizer: Any) -> int:
    """V: tokens that a tokenizer has, up to the highest id. A model's further logits are padding."""
    return int(max(tokenizer.get_vocab().values())) + 1


def teacher_prompt(recipe: Recipe, task: Task, tokenizer: Any, text: str, suffix: str) -> tuple[int, ...]:
    """What stands before a completion in the teacher's context: a text as the student gets it, primed, and the suffix.

    Args:
        recipe: its `teacher.priming`, and whether by `train.white_box` the instruction and the labels come first.
        task: the student's.
        tokenizer: the one of both.
        text: filled, and not cut yet: it is cut as for the student, before anything is put to it.
        suffix: what the student's prompt of this branch ends with.
    """
    question = primed(task.cut(tokenizer, text), recipe.teacher.priming, task.choices is not None)
    section = recipe.train.white_box
    if section is not None and section.context == "instruction":
        listing = [f"{label.name}: {label.description}".removesuffix(": ") for label in task.labels]
        question = "\n".join([task.instruction, *listing, "", question])
    whole = dataclasses.replace(task, max_text_tokens=sys.maxsize)
    return tuple(whole.encode(tokenizer, question, suffix))


class LocalTeacher:
    """A frozen transformers model that reads packed rows; see `states`."""

    def __init__(self, base: Base, recipe: Recipe, task: Task, tokenizer: Any, dtype: torch.dtype) -> None:
        """Loads the folder in `dtype`; torch's generator is left as it was.

        Raises:
            EdgestillError: transformers cannot read it, or its logits are not what its head makes of hidden states.
        """
        from safetensors import SafetensorError

        try:
            with torch.random.fork_rng():
                causal = load_causal(base, dtype).eval().requires_grad_(False)
        except (OSError, ValueError, SafetensorError) as error:
            raise EdgestillError(f"teacher.path: transformers cannot read {base.spec}: {error}") from None
        self.rows = CausalRows(causal, recipe, task, tokenizer)
        self.spec, self.vocabulary = base.spec, token_count(tokenizer)
        self.most_tokens = int(read_config(base).get("max_position_embeddings") or sys.maxsize)
        self._check_head(task)

    @property
    def head(self) -> Tensor:
        """(V, H) of the tokens that there are."""
        return self.rows.head[: self.vocabulary]

    @torch.no_grad()
    def states(self, examples: Sequence[Example], layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """((N, H) what the head reads, the same after each of `layers`) where the rows' completions are predicted.

        Raises:
            EdgestillError: a prompt with its completion is longer than the teacher's context.
        """
        longest = max(len(branch.prompt) + len(branch.completion) for row in examples for branch in row.branches)
        if longest > self.most_tokens:
            raise EdgestillError(
                f"a row has {longest} tokens for the teacher, whose context holds {self.most_tokens}",
                "lower data.max_text_tokens or name another teacher",
            )
        return layer_states(self.rows, pack(examples), layers)

    @torch.no_grad()
    def _check_head(self, task: Task) -> None:
        """Some families scale or cap what the head says; a divergence of the bare products would be another model's."""
        one = pack([Example(Branch((task.eos_token_id, 0, 1, 2, 3), (4,)), None)])
        inputs = {"input_ids": one.ids, "position_ids": one.positions, "blocks": one.blocks, "use_cache": False}
        logits = self.rows.causal(**inputs).logits[0, one.sources].float()
        bare = (self.rows.hidden(one) @ self.rows.head.t()).float()
        if logits.shape[-1] < self.vocabulary:
            found = f"{logits.shape[-1]} logits for {self.vocabulary} tokens"
        elif not torch.allclose(logits, bare, rtol=0.02, atol=SAME_LOGITS_ABS):
            found = "logits that are scaled or capped after the head"
        else:
            return
        raise EdgestillError(f"teacher.path: {self.spec} has {found}", "name a teacher without, or no train.white_box")


def layer_states(rows: CausalRows, packed: Any, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """((N, H) what the head reads, the same after each of `layers`, counted from 1) where a pass carries loss."""
    if not layers:
        return rows.hidden(packed), []
    inputs = {"input_ids": packed.ids, "position_ids": packed.positions, "blocks": packed.blocks}
    found = rows.causal.model(**inputs, use_cache=False, output_hidden_states=True)
    after = [found.hidden_states[layer][0, packed.sources] for layer in layers]
    return found.last_hidden_state[0, packed.sources], after
