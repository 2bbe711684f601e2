"""A decoder in training as the author of explanations: what it writes, and what it answers after a part of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgestill.distill.elad.steps import prefixes
from edgestill.distill.student.writing import write
from edgestill.distill.white_box.on_policy import sampler
from edgestill.runtime.choices import choices_of
from edgestill.runtime.task import ANSWER_SUFFIX, RATIONALE_SUFFIX
from edgestill.runtime.written import read_answer

BATCH_TEXTS = 16
FORCED_ANSWER_TOKENS = 32  # an answer that is wanted at once
# a row's text, and the part of a reason that stands below it, "" for none
Place = tuple[str, str]
# a text, and whether the student came to its end
Written = tuple[str, bool]


class Explainer:
    """Writes explanations for a `CausalLearner`'s task and counts what that takes."""

    def __init__(self, learner: Any, most_tokens: int, temperature: float) -> None:
        """An explanation has at most `most_tokens` tokens; sampled ones are drawn at `temperature`."""
        self.learner, self.task = learner, learner.task
        self.most_tokens, self.temperature = most_tokens, temperature
        self.texts = self.forced = 0  # explanations written, answers forced

    def explain(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        """(explanation, answer) of each text, greedily; of a chain both are one text that the student writes.

        Otherwise the answer is the one that it gives without having written a reason, as it does on the device.
        """
        written = self._write([(text, "") for text in texts], None)
        reasons = [_whole(*each) for each in written]
        if self.task.chain:
            return [(reason, read_answer(said, self.task)) for reason, (said, _) in zip(reasons, written, strict=True)]
        return list(zip(reasons, self.answers([(text, "") for text in texts]), strict=True))

    def sampled_answers(self, places: Sequence[Place], seeds: Sequence[int]) -> list[str]:
        """The answer of an explanation drawn from each place on, by a seed each."""
        written = [said for said, _ in self._write(places, seeds)]
        found = [read_answer(said, self.task) if self.task.chain else "" for said in written]
        missing = [i for i, answer in enumerate(found) if not answer]
        whole = [(places[i][0], f"{places[i][1]} {_reason_of(written[i])}".strip()) for i in missing]
        for i, answer in zip(missing, self.answers(whole), strict=True):
            found[i] = answer
        return found

    def answers(self, places: Sequence[Place]) -> list[str]:
        """The answer that is forced at each place, "" for none at all."""
        if not self.task.is_written:
            return [self.task.label_names[i] for i in self.chances(places).argmax(-1)]
        self.forced += len(places)
        written = self._written(self._forced(places), min(self.task.max_answer_tokens, FORCED_ANSWER_TOKENS))
        return [read_answer(ANSWER_SUFFIX + said if self.task.chain else said, self.task) for said, _ in written]

    def chances(self, places: Sequence[Place]) -> NDArray[np.float64]:
        """(N, L): the label probabilities at N places."""
        self.forced += len(places)
        ids, found = [label.token_id for label in self.task.labels], list[torch.Tensor]()

        def pick(logits: torch.Tensor) -> torch.Tensor:  # the first token is never written, only looked at
            found.append(logits[:, ids].double().softmax(-1))
            return logits.argmax(-1)

        self._written(self._forced(places), 1, lambda _: pick)
        chances = torch.cat(found).numpy() if found else np.zeros((0, len(ids)))
        if self.task.choices is not None:
            for row, (text, _) in zip(chances, places, strict=True):
                row[len(choices_of(text)) :] = 0
            chances /= chances.sum(-1, keepdims=True)
        return chances

    def _forced(self, places: Sequence[Place]) -> list[list[int]]:
        return [
            self._prompt(text, f"{RATIONALE_SUFFIX} {reason}{ANSWER_SUFFIX}" if reason else ANSWER_SUFFIX)
            for text, reason in places
        ]

    def _write(self, places: Sequence[Place], seeds: Sequence[int] | None) -> list[Written]:
        """What the student goes on to write at each place, of a chain with the answer; the likeliest without seeds."""
        self.texts += len(places)
        prompts = [
            self._prompt(text, f"{RATIONALE_SUFFIX} {reason}" if reason else RATIONALE_SUFFIX)
            for text, reason in places
        ]
        if seeds is None:
            return self._written(prompts, self.most_tokens)

        def drawn(here: slice) -> Any:
            return sampler(seeds[here], len(self.learner.head), self.temperature)

        return self._written(prompts, self.most_tokens, drawn)

    def _prompt(self, text: str, suffix: str) -> list[int]:
        ids: list[int] = self.task.encode(self.learner.tokenizer, text, suffix)
        return ids

    def _written(
        self, prompts: Sequence[list[int]], most_tokens: int, pick: Callable[[slice], Any] | None = None
    ) -> list[Written]:
        """What is written after each prompt, a batch at a time; `pick` gives the picker of a batch, None the greedy."""
        eos, said = self.task.eos_token_id, list[Written]()
        for here in _batches(len(prompts)):
            chosen = {} if pick is None else {"pick": pick(here)}
            for ids in write(self.learner.causal, prompts[here], eos, most_tokens, **chosen):
                text = self.learner.tokenizer.decode(list(ids), skip_special_tokens=True)
                said.append((text.rstrip("\ufffd").strip(), ids[-1] == eos))
        return said


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH_TEXTS) for start in range(0, count, BATCH_TEXTS))


def _reason_of(written: str) -> str:
    """What stands before the first answer; a student may go on and answer again."""
    return ("\n" + written).partition(ANSWER_SUFFIX)[0].strip()


def _whole(written: str, ended: bool) -> str:
    """The reason without a last step that the limit may have cut off: a half one would be reviewed and learnt."""
    reason = _reason_of(written)
    if ended or not reason or ANSWER_SUFFIX in "\n" + written:
        return reason
    return prefixes(reason)[-2]
