"""What the teacher is asked when it is to write a better instruction, and what of its answers is taken for one.

The manner is that of OPRO (arXiv 2309.03409) as arXiv 2403.15886 uses it: the best so far with their scores, the worst
of them first, and some worked problems. The words are ours.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from edgestill.distill.dataset import Row, row_id
from edgestill.distill.prompt_search.gold import GoldRow
from edgestill.distill.prompt_search.section import PromptSearchSection
from edgestill.distill.prompt_search.trial import Trial
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.parse import Reading, objects_in

SHOWN = 15  # of the best so far, as published
LONGEST_CHARACTERS = 1_000
BRIEF = """You write the instruction that a language model gets before it answers. After the instruction the model is \
told which answers there are and in which form to give them, then it sees one text.

You are shown instructions that were tried, the worst first. All were measured on the same texts: accuracy is the \
percentage of right answers, reasons the percentage of answers that came with a reason. Write one new instruction that \
differs from all of them and will reach a higher accuracy. Make it clear, short and general: quote none of the texts, \
give no examples, and do not describe the form of the answer.

Answer with one JSON object and nothing else:
"""


class NewInstruction(Form):
    """An instruction of the teacher's own; see `form`."""

    key: ClassVar[str] = "instruction"
    named: ClassVar[str] = "an instruction"
    plural: ClassVar[str] = "instructions"
    asked: ClassVar[str] = "your new instruction"

    @property
    def value(self) -> dict[str, Any]:
        """Text."""
        return {"type": "string"}

    def instructions(self, keys: Sequence[str]) -> str:
        """What is wanted; the row's text holds what was tried."""
        return BRIEF + json.dumps(dict.fromkeys(keys, self.asked))

    def mend(self, text: str) -> str:  # noqa: ARG002 - the same for all
        """A text of some length."""
        return f"instruction is a text of at most {LONGEST_CHARACTERS} characters"

    def read(self, content: str, text: str) -> Reading:
        """An instruction in an object alone: other text may be a refusal or talk, and each costs a whole try."""
        if not any(self.key in each for each in objects_in(content)):
            return Reading(reason="unparsable", detail=f"no JSON object with {self.named}")
        return super().read(content, text)

    def match(self, said: object, text: str) -> str | None:  # noqa: ARG002 - the same for all
        """The instruction with its blanks as single ones."""
        found = " ".join(said.split()) if isinstance(said, str) else ""
        return found if 0 < len(found) <= LONGEST_CHARACTERS else None


def questions(tried: Sequence[Trial], worked: Sequence[GoldRow], wanted: int, number: int, seed: int) -> list[Row]:
    """The rows of one round, a row for each instruction that is wanted.

    Args:
        tried: all so far.
        worked: rows that are shown with their answer.
        wanted: how many instructions.
        number: of the round, from 1.
        seed: of the search; another one asks anew.
    """
    best = sorted(tried, key=lambda trial: trial.rank)[-SHOWN:]
    shown = [*map(_scored, best), "Texts with the right answer:", *map(_problem, worked)]
    texts = ["\n\n".join([*shown, f"Proposal {number}.{k} of search {seed}."]) for k in range(1, wanted + 1)]
    return [Row(row_id(text), text, None, "propose") for text in texts]


def _scored(trial: Trial) -> str:
    reasons = "" if trial.explanation_rate is None else f", reasons {trial.explanation_rate:.0%}"
    return f"Instruction: {trial.instruction}\nAccuracy {trial.accuracy:.0%}{reasons}"


def _problem(each: GoldRow) -> str:
    return f"Text: {each.row.text}\nAnswer: {each.gold}"


def refusal(instruction: str, known: Collection[str], worked: Sequence[GoldRow]) -> str | None:
    """Why a new instruction is not tried: known already, or it quotes a text that it was shown; None: it is tried."""
    if plain(instruction) in known:
        return "known"
    return "quotes_a_text" if any(plain(each.row.text) in plain(instruction) for each in worked) else None


def plain(instruction: str) -> str:
    """What makes two instructions the same: case and blanks do not."""
    return " ".join(instruction.casefold().split())


def writer(recipe: Recipe, search: PromptSearchSection) -> Recipe:
    """The recipe as the teacher is asked by it for instructions: no reasons, no odds, no second askings."""
    task = recipe.task.model_copy(update={"rationale": False})
    calm = {"logprobs": False, "votes": 0, "self_agreement_rows": 0, "smoke_rows": 0, "priming": "none"}
    teacher = recipe.teacher.model_copy(update={**calm, "temperature": search.temperature})
    return recipe.model_copy(update={"task": task, "teacher": teacher})
