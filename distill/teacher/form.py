"""The form of a question and of its answer: what is asked for, in which shape, and how it is read. Sends nothing.

Those of the recipe's kinds of task are in `forms`. Who asks something else, such as a review of a student's steps,
writes a subclass where it is needed and gives it to `Prompter` and `LiveTeacher` as `form`: `key` names what is asked
for, `asked` and `value` describe it in words and as JSON Schema, `listing` is what stands below the instruction,
`match` reads a value; `keys`, `schema` and `read` are there to be overridden where the object has more to it. What was
read must fit into one text, the `label` of a `Reading`; what the question needs must stand in the text of its row.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.parse import (
    LABEL_LINE,
    Reading,
    Wanted,
    clean,
    objects_in,
    read_text,
    said_in,
    unusable_label,
)

# The last line of reasoning in prose: (what stands before it, the answer that it names).
ENDING = re.compile(
    r"\A(.*?)(?:\A|[\n\s])[^\w\n]*(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:(?:final|correct) )?"
    r"(?:answer[^\w\n]*(?:is|[:=])|####)[\s:*]*(\S[^\n]*)\Z",
    re.DOTALL | re.IGNORECASE,
)
REASON_WORD = re.compile(r"\A\W*(?:rationale|reason(?:ing)?|explanation)\W*[:=]\W*", re.IGNORECASE)


class Form(ABC):
    """How one kind of question is put and its answer read; immutable.

    `labels` are all answers there are, () where they are free; `tells_odds` says whether an answer's tokens and votes
    tell how likely each is; `fields` are the types under which a recorded answer may stand; `primes` says
    whether `teacher.priming` stands around its question.
    """

    key: ClassVar[str] = "label"
    also_read: ClassVar[tuple[str, ...]] = ()
    line: ClassVar[re.Pattern[str]] = LABEL_LINE
    named: ClassVar[str] = "a label"
    plural: ClassVar[str] = "labels"
    why: ClassVar[str] = "one short sentence that says why"
    tells_odds: ClassVar[bool] = False
    fields: ClassVar[tuple[type, ...]] = (str,)
    primes: ClassVar[bool] = True

    def __init__(self, task: TaskSection) -> None:
        """`task` is the recipe's."""
        self.task = task
        self.labels = tuple(task.labels)

    def keys(self, order: str | None) -> tuple[str, ...]:
        """Keys of the object that is asked for: the reason `before` the answer, `after` it, or none."""
        return {None: (self.key,), "before": ("rationale", self.key), "after": (self.key, "rationale")}[order]

    @property
    @abstractmethod
    def asked(self) -> str | list[str]:
        """The answer's place in the object, in words."""

    @property
    @abstractmethod
    def value(self) -> dict[str, Any]:
        """The answer as JSON Schema."""

    def listing(self) -> str:
        """What stands between the instruction and the shape of the answer."""
        return ""

    def instructions(self, keys: Sequence[str]) -> str:
        """Zero-shot: what is asked, the labels with their meaning, the shape of the answer (arXiv 2403.15886)."""
        said = {"rationale": self.why, self.key: self.asked}
        shape = json.dumps({key: said[key] for key in keys}, ensure_ascii=False)
        return f"{self.task.instruction}{self.listing()}\n\nAnswer with one JSON object and nothing else:\n{shape}"

    def schema(self, keys: Sequence[str]) -> dict[str, Any]:
        """The object as JSON Schema."""
        kinds = {"rationale": {"type": "string"}, self.key: self.value}
        properties = {key: kinds[key] for key in keys}
        return {"type": "object", "properties": properties, "required": list(keys), "additionalProperties": False}

    def options(self, text: str) -> list[str]:  # noqa: ARG002 - a form whose rows differ wants it
        """The answers that a row may get; none where they are free."""
        return list(self.labels)

    @abstractmethod
    def mend(self, text: str) -> str:
        """What a repair says is wanted."""

    @abstractmethod
    def match(self, said: object, text: str) -> str | None:
        """The answer to a row that a value is, None where it is none."""

    def unusable(self, said: object, text: str) -> Reading:  # noqa: ARG002 - as above
        """Why a value is no answer."""
        return unusable_label(said)

    def read(self, content: str, text: str) -> Reading:
        """What a whole answer says about the row with this text."""
        match, unusable = lambda said: self.match(said, text), lambda said: self.unusable(said, text)
        return read_text(
            content, Wanted((self.key, *self.also_read), self.line, self.named, self.plural, match, unusable)
        )

    def _ending(self, content: str, text: str) -> Reading | None:
        """The answer that the last line of prose names, with what stands before it as the reason; None without one."""
        ending = None if self._in_object(content) else ENDING.match(said_in(content))
        found = None if ending is None else self.match(ending[2], text)
        if ending is None or found is None:
            return None
        return Reading(found, clean(REASON_WORD.sub("", ending[1])) or None)

    def _in_object(self, content: str) -> bool:
        """Whether an answer stands under a key."""
        keys = {self.key, *self.also_read}
        return any(keys & set(each) for each in objects_in(content))
