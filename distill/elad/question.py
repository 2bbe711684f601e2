"""The question that lets a teacher review a student's own steps, and how its answer becomes one for the row.

ELAD (arXiv 2402.13098) has the teacher correct the student's explanation; the wording and the shape are ours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.elad.review import Review, read_review
from edgestill.distill.elad.steps import revised, split_steps
from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.forms import form_of
from edgestill.distill.teacher.parse import REFUSAL, Reading, clean, objects_in, said_in

KEYS = ("verdicts", "first_error", "revised_steps", "answer")
HOW = (
    "You check how a student worked on a question. Go through the student's steps in order and give each one the "
    "verdict CORRECT or WRONG, up to and including the first wrong one. If a step is wrong, name its number, write it "
    "anew and go on to the end in as many steps as it takes, in the student's style; keep the correct steps before it "
    "as they are and do not repeat them. If no step is wrong, there is nothing to rewrite. Then give the correct "
    "answer to the question, whatever the student answered."
)


@dataclass(frozen=True)
class Question:
    """A row with what the student wrote about it; `explanation` has at least one step."""

    row: Row
    explanation: str
    answer: str

    def rendered(self) -> Row:
        """The row under the same id, with the student's steps below its text."""
        steps = "\n".join(f"{number}. {step}" for number, step in enumerate(split_steps(self.explanation), 1))
        said = self.answer or "(none)"
        text = f"Question:\n{self.row.text}\n\nThe student's steps:\n{steps}\n\nThe student's answer: {said}"
        return Row(self.row.id, text, self.row.gold, self.row.split)


class ReviewForm(Form):
    """Verdicts on steps, the first error, what stands there instead, and the answer in the form of the task.

    A review that can be used is read as the row's answer with the revised explanation as its rationale.
    """

    key = "answer"
    primes = False  # the words are about answering a question, not about checking somebody's steps

    def __init__(self, task: TaskSection, questions: Sequence[Question]) -> None:
        """`questions` are all that will be asked."""
        super().__init__(task)
        self._inner = form_of(task)
        self._questions: Mapping[str, Question] = {each.rendered().text: each for each in questions}

    def keys(self, order: str | None) -> tuple[str, ...]:  # noqa: ARG002 - a review has one order
        """Verdicts come first: who has judged step by step writes the answer better."""
        return KEYS

    @property
    def asked(self) -> str | list[str]:
        """As the task's own."""
        return self._inner.asked

    @property
    def value(self) -> dict[str, Any]:
        """As the task's own."""
        return self._inner.value

    def listing(self) -> str:
        """As the task's own."""
        return self._inner.listing()

    def instructions(self, keys: Sequence[str]) -> str:
        """What the student was asked, how to review, the shape of a review."""
        said = {
            "verdicts": ["CORRECT or WRONG for each step, up to the first wrong one"],
            "first_error": "number of the first wrong step, or null",
            "revised_steps": ["that step written anew, and those that follow from it; empty if no step is wrong"],
            "answer": self.asked,
        }
        shape = json.dumps({key: said[key] for key in keys}, ensure_ascii=False)
        task = f"The question to the student was:\n{self.task.instruction}{self.listing()}"
        return f"{HOW}\n\n{task}\n\nAnswer with one JSON object and nothing else:\n{shape}"

    def schema(self, keys: Sequence[str]) -> dict[str, Any]:
        """A review as JSON Schema."""
        kinds = {
            "verdicts": {"type": "array", "items": {"type": "string", "enum": ["CORRECT", "WRONG"]}},
            "first_error": {"type": ["integer", "null"]},
            "revised_steps": {"type": "array", "items": {"type": "string"}},
            "answer": self.value,
        }
        properties = {key: kinds[key] for key in keys}
        return {"type": "object", "properties": properties, "required": list(keys), "additionalProperties": False}

    def options(self, text: str) -> list[str]:
        """The answers that the question's row may get."""
        return self._inner.options(self._questions[text].row.text)

    def mend(self, text: str) -> str:
        """What a repair says is wanted."""
        return (
            "verdicts, first_error and revised_steps must agree; "
            f"{self._inner.mend(self._questions[text].row.text).replace(self._inner.key, self.key, 1)}"
        )

    def match(self, said: object, text: str) -> str | None:
        """The answer to the question's row that a value is."""
        return self._inner.match(said, self._questions[text].row.text)

    def read(self, content: str, text: str) -> Reading:
        """The reviewed answer: the student's steps up to the first wrong one, the teacher's from there on."""
        question, said = self._questions[text], said_in(content)
        if not said:
            return Reading(reason="empty", detail="no content")
        if not objects_in(content) and REFUSAL.match(said):
            return Reading(reason="refused", detail=clean(said)[:200])
        found = read_review(content, len(split_steps(question.explanation)), lambda value: self.match(value, text))
        if not isinstance(found, Review):
            return found
        return Reading(found.answer, clean(revised(question.explanation, found.first_error, found.revised_steps)))
