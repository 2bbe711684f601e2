"""The recipe's section `task`: what is asked, and which answers there are."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from edgestill.distill.section import Section
from edgestill.runtime import label_sets
from edgestill.runtime.choices import FEWEST, LETTERS, choices_of
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.task import Task
from edgestill.runtime.written import canonical, read_answer

FEWEST_LABELS = {"classify": 2, "multilabel": 1, "generate": 0}
MOST_CHOICES = 5
NOT_YET = {"extract": "JSON extraction is planned"}


class TaskSection(Section):
    """What is asked. `labels` maps names to descriptions, or is a plain list of names.

    With `kind: classify` a row has one label, with `kind: multilabel` any number of them, also none. `none` names the
    label that means "none of these", which the report then treats as one of its own.

    With `choices`, the name of a field, each row brings its own list of answers and the labels are their letters. With
    `kind: generate` there are no labels: the answer is a text, compared as `match` says, after `answer_pattern` found
    it where there is one. `max_answer_tokens` ends the writing; None means what suits the objective.
    """

    kind: str = "classify"
    instruction: str
    choices: str | None = None
    most_choices: Annotated[int, Field(ge=FEWEST, le=len(LETTERS))] = MOST_CHOICES
    labels: dict[str, str]
    none: str | None = None
    rationale: bool = True
    answer: Literal["auto", "path", "token"] = "auto"
    match: Literal["exact", "number", "f1"] = "exact"
    answer_pattern: str | None = None
    max_answer_tokens: Annotated[int, Field(ge=1)] | None = None

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in FEWEST_LABELS:
            planned = f" ({NOT_YET[kind]})" if kind in NOT_YET else ""
            supported = ", ".join(FEWEST_LABELS)
            raise ValueError(f"kind {kind!r} is not supported by this version{planned}; supported: {supported}")
        return kind

    @field_validator("answer_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            groups = 0 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if groups > 1:
            raise ValueError(f"{pattern!r} has {groups} groups, wanted at most one; write (?:...) for the others")
        return pattern

    @model_validator(mode="before")
    @classmethod
    def _nobody_writes_what_follows(cls, data: Any) -> Any:
        if isinstance(data, dict) and (data.get("kind") == "generate" or data.get("choices") is not None):
            return {"labels": None, **data}
        return data

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_as_mapping(cls, labels: Any, info: ValidationInfo) -> Any:
        kind, choices = info.data.get("kind", "classify"), info.data.get("choices")
        if kind == "generate" or choices is not None:
            implied = dict.fromkeys(LETTERS[: info.data.get("most_choices", MOST_CHOICES)] if choices else "", "")
            if labels not in (None, implied):
                why = f"are the letters of each row's {choices}" if choices else "are none of kind generate"
                raise ValueError(f"the labels {why}; take this key away")
            return implied
        if not isinstance(labels, list | dict):
            raise ValueError("wanted names with descriptions, or a list of names")
        for name in labels:
            if not isinstance(name, str):
                raise ValueError(f"the label {name!r} is not text for YAML; put it in quotes")
            if name != name.strip() or not name:
                raise ValueError(f"the label {name!r} is empty or has blanks around it")
            if kind == "multilabel" and label_sets.BAR in name:
                raise ValueError(f"the label {name!r} holds a bar, which parts the labels of a set; write it otherwise")
            if kind == "multilabel" and name == label_sets.EMPTY:
                raise ValueError(f"the label {name!r} stands for the empty set; write it otherwise")
        if len(set(labels)) != len(labels):
            raise ValueError("a label is listed twice")
        if len(labels) < FEWEST_LABELS[kind]:
            raise ValueError(f"found {len(labels)} labels, wanted at least {FEWEST_LABELS[kind]}")
        if isinstance(labels, list):
            return dict.fromkeys(labels, "")
        return {name: "" if text is None else text for name, text in labels.items()}

    @model_validator(mode="after")
    def _none_is_a_label(self) -> "TaskSection":
        if self.none is not None and self.is_multilabel:
            raise ValueError(f"none: {self.none!r} has no place in kind multilabel: there the empty set means that")
        if self.none is not None and (self.is_written or self.choices):
            raise ValueError(f"none: {self.none!r} names a label, and this task names none")
        if self.none is not None and self.none not in self.labels:
            raise ValueError(f"none: {self.none!r} is not one of the labels {list(self.labels)}")
        return self

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> "TaskSection":
        if self.choices is not None and self.kind != "classify":
            raise ValueError(f"choices is for kind classify, found kind {self.kind}")
        given = self.model_fields_set
        if self.most_choices != MOST_CHOICES and self.choices is None:
            raise ValueError("most_choices is for a task with choices; name the rows' field in choices")
        if self.is_written and self.answer != "auto":
            raise ValueError(f"answer: {self.answer} is about labels, of which kind generate has none; take it away")
        for name in ("match", "answer_pattern", "max_answer_tokens"):
            if name in given and not self.is_written and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for kind generate, found kind {self.kind}")
        return self

    @property
    def is_multilabel(self) -> bool:
        """Whether a row has a set of the labels, which may be empty, and not one of them."""
        return self.kind == "multilabel"

    @property
    def is_written(self) -> bool:
        """Whether the answer is a text of its own."""
        return self.kind == "generate"

    def letters(self, text: str) -> list[str]:
        """The letters of the choices at the end of a row's text; all where no text is given."""
        return list(self.labels)[: len(choices_of(text)) or None]

    def read(self, value: object, text: str = "") -> str:
        """The answer that a field of a record holds, as it is compared and learnt.

        A label; a set of them as `label_sets` writes it; the letter of one of the choices in the row's `text`, given as
        letter, as its place counted from 0, or in its words; of a task that generates the canonical answer.

        Raises:
            EdgestillError: something else, or a label that the recipe does not know.
        """
        if self.is_multilabel:
            return label_sets.read(value, list(self.labels))
        if self.is_written:
            return self._written(value)
        if self.choices is not None:
            return self._letter(value, self.letters(text), choices_of(text))
        if not isinstance(value, str) or value not in self.labels:
            raise EdgestillError(f"label {value!r:.80} is not one of {list(self.labels)}")
        return value

    def _letter(self, value: object, letters: list[str], choices: list[str]) -> str:
        said = str(value).strip()
        words = [canonical(choice, "exact") for choice in choices]
        found = {letter for letter, word in zip(letters, words, strict=False) if word == canonical(said, "exact")}
        if isinstance(value, bool) or not isinstance(value, str | int):
            found = set()
        elif said in letters:
            found |= {said}
        elif said.isascii() and said.isdigit() and int(said) < len(letters):
            found |= {letters[int(said)]}
        if len(found) != 1:
            wanted = f"means several of {choices}, wanted a letter"
            several = wanted if found else f"is none of {letters}, nor the words of a choice"
            raise EdgestillError(f"label {value!r:.80} {several}")
        return found.pop()

    def _written(self, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise EdgestillError(f"answer {value!r:.80} is neither text nor a number")
        said = str(value) if isinstance(value, str | int) else f"{value:.12g}"
        answer = read_answer(said, self._reader) or canonical(said, self.match)
        wanted = "a number" if self.match == "number" else "a word"
        if not answer:
            raise EdgestillError(f"answer {value!r:.80} holds nothing to compare, wanted {wanted}")
        if read_answer(answer, self._reader) != answer:
            raise EdgestillError(
                f"answer {value!r:.80} is learnt as {answer!r}, where task.answer_pattern does not find it again"
            )
        return answer

    @property
    def _reader(self) -> Task:
        """As much of the finished task as finding an answer wants."""
        how: dict[str, Any] = {"match": self.match, "answer_pattern": self.answer_pattern}
        return Task(self.kind, "", (), "", "text", "", None, 0, "refuse", None, 0, **how)
