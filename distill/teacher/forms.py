"""The forms of the recipe's kinds of task: one label, a set of them, one of a row's own choices, a text.

See `form` for what a form is.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.parse import (
    LABELS_LINE,
    REFUSAL,
    Reading,
    clean,
    match_label,
    match_set,
    said_in,
    unusable_label,
)
from edgestill.runtime.choices import choices_of
from edgestill.runtime.errors import EdgestillError

FEW_WORDS = 3  # more are prose, in which a number may mean anything
LETTERED = re.compile(r"\W*([A-Za-z])(?:\W*|\s*[).:\]]+\s*(\S.*))", re.DOTALL)


class OneLabel(Form):
    """One of the labels."""

    tells_odds = True
    asked = "one of the labels above, as it is written there"

    @property
    def value(self) -> dict[str, Any]:
        """One of the names."""
        return {"type": "string", "enum": list(self.labels)}

    def listing(self) -> str:
        """The labels with their meaning."""
        return _listed(self.task)

    def mend(self, text: str) -> str:
        """One of the names."""
        return f"label is one of {_quoted(self.options(text))}"

    def match(self, said: object, text: str) -> str | None:
        """A label."""
        return match_label(said, self.options(text))


class LabelSet(Form):
    """Any number of the labels, as `label_sets` writes them."""

    key = "labels"
    also_read = ("label",)
    line = LABELS_LINE
    named = "labels"
    fields = (str, list)
    asked: ClassVar[list[str]] = [
        "every label above that fits, as it is written there; an empty list if none fits",
    ]

    @property
    def value(self) -> dict[str, Any]:
        """A list of the names."""
        return {"type": "array", "items": {"type": "string", "enum": list(self.labels)}}

    def listing(self) -> str:
        """The labels with their meaning."""
        return _listed(self.task)

    def mend(self, text: str) -> str:
        """A list of the names."""
        return f"labels is a list of all that fit, perhaps none, of {_quoted(self.options(text))}"

    def match(self, said: object, text: str) -> str | None:
        """A set."""
        return match_set(said, self.options(text))

    def unusable(self, said: object, text: str) -> Reading:
        """Of a list the first in it that is no label."""
        if isinstance(said, list):
            said = next(each for each in said if match_label(each, self.options(text)) is None)
        return unusable_label(said)


class RowChoice(OneLabel):
    """The letter of one of the row's own choices; the choice's own words, or both, are taken for it too."""

    also_read = ("answer", "choice")
    fields = (str, int)
    asked = "the letter of one of the choices below the text"

    def listing(self) -> str:
        """Nothing: the choices stand below each text."""
        return ""

    def options(self, text: str) -> list[str]:
        """The letters of the row's choices."""
        return self.task.letters(text)

    def match(self, said: object, text: str) -> str | None:
        """A letter."""
        options, choices = self.options(text), choices_of(text)
        if not isinstance(said, str):
            return None
        spelt = LETTERED.fullmatch(said.strip())
        letter = spelt[1].upper() if spelt else None
        by_words = self._by_words(said, options, choices)
        if spelt is None or letter not in options:
            return by_words
        if spelt[2] is None:
            return letter
        meant = self._by_words(spelt[2], options, choices)
        return by_words or (letter if meant == letter else None)

    def read(self, content: str, text: str) -> Reading:
        """As of one label, or prose whose last line names the choice."""
        return self._ending(content, text) or super().read(content, text)

    @staticmethod
    def _by_words(said: str, options: Sequence[str], choices: Sequence[str]) -> str | None:
        name = match_label(said, choices)
        return None if name is None or choices.count(name) != 1 else options[choices.index(name)]


class FreeText(Form):
    """A text of the teacher's own, compared as `task.match` says; in prose the last line may name it."""

    key = "answer"
    also_read = ("label",)
    named = "an answer"
    plural = "answers"
    why = "the reasoning that leads to the answer, in short sentences"
    fields = (str, int, float)

    @property
    def asked(self) -> str:
        """A number or words."""
        number = "the number alone, in digits, without a unit"
        return number if self.task.match == "number" else "the answer alone, in as few words as possible"

    @property
    def value(self) -> dict[str, Any]:
        """Text, also of a number: so it comes as it was meant, thousands and all."""
        return {"type": "string"}

    def mend(self, text: str) -> str:  # noqa: ARG002 - the same for all
        """What the instructions asked for."""
        return f"answer is {self.asked}"

    def match(self, said: object, text: str) -> str | None:
        """The answer in the form in which answers are compared."""
        try:
            return self.task.read(said, text)
        except EdgestillError:
            return None

    def unusable(self, said: object, text: str) -> Reading:
        """What `TaskSection.read` says against it."""
        try:
            self.task.read(said, text)
        except EdgestillError as error:
            return Reading(reason="label_not_allowed", detail=error.message)
        return unusable_label(said)

    def read(self, content: str, text: str) -> Reading:
        """An object, prose whose last line names the answer, or the bare answer: few words, unless a pattern finds it.

        What stands before the last line is the reason.
        """
        said = said_in(content)
        found = self._ending(content, text)
        if found is not None or self._in_object(content) or self.line.search(said):
            return found or super().read(content, text)
        if REFUSAL.match(said):
            return Reading(reason="refused", detail=clean(said)[:200])
        most_words = FEW_WORDS if self.task.match == "number" else len(said)
        if self.task.answer_pattern is None and ("\n" in said or len(said.split()) > most_words):
            return Reading(reason="unparsable", detail=f"no JSON object with {self.named}")
        return super().read(content, text)


FORMS: dict[str, type[Form]] = {
    "classify": OneLabel,
    "multilabel": LabelSet,
    "choices": RowChoice,
    "generate": FreeText,
}


def form_of(task: TaskSection) -> Form:
    """The form of a recipe's task."""
    return FORMS["choices" if task.choices else task.kind](task)


def _listed(task: TaskSection) -> str:
    lines = (f"- {name}: {text}" if text else f"- {name}" for name, text in task.labels.items())
    return "\n\nLabels:\n" + "\n".join(lines)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names)
