"""What is asked and how it is answered: the one renderer that training, export gates and the device all use.

A prompt is the text plus a short suffix; no system turn and no label list, because the student has learnt both.
Does not run a model and does not know which engine will.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgestill.runtime import label_sets
from edgestill.runtime.choices import split_choices, with_choices
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import LATER

ANSWER_SUFFIX = "\nAnswer:"
RATIONALE_SUFFIX = "\nReason:"
REDACTED = "[redacted]"
ANSWER_ROOM_TOKENS = 96  # suffix, answer and reason beside the longest text


@dataclass(frozen=True)
class Label:
    """One allowed answer.

    `token_id` is the place of the label in the logits: for a student that writes, the vocabulary id of the first token
    of the name (`answer: path`) or of a token of its own (`answer: token`) at the answer position; for an encoder
    (`answer: head`) the output of its classification head. `completion` is what a student that writes is trained to
    write, empty for an encoder.
    """

    name: str
    description: str
    token_id: int
    completion: str


@dataclass(frozen=True)
class Task:
    """A finished task, as `task.json` in the bundle holds it.

    `kind` is classify, where one label answers; multilabel, where all do whose own probability is at least
    `threshold`, perhaps none; or generate, where the student writes the answer and there are no labels.
    `answer` is path, token or head, see `Label`; with head, `bos_token_id` and `eos_token_id` are the special tokens
    that an encoder wants around a text. `none` names the label that means "none of these", if one does.

    `choices` names the field that holds a row's own list of answers, which the labels then are the letters of. Of a
    task that generates, `match` says how an answer is compared (exact, number or f1), `answer_pattern` is the regular
    expression that finds it in what was written, `max_answer_tokens` ends the writing; with `chain` the reason is
    written before the answer, in one go.
    """

    kind: str
    instruction: str
    labels: tuple[Label, ...]
    text: str
    answer: str
    answer_suffix: str
    rationale_suffix: str | None
    max_text_tokens: int
    too_long: str
    bos_token_id: int | None
    eos_token_id: int
    redact: tuple[str, ...] = ()
    none: str | None = None
    threshold: float = 0.5
    choices: str | None = field(default=None, metadata=LATER)
    match: str = field(default="exact", metadata=LATER)
    answer_pattern: str | None = field(default=None, metadata=LATER)
    max_answer_tokens: int = field(default=32, metadata=LATER)
    chain: bool = field(default=False, metadata=LATER)
    schema: str = "edgestill-task/2"

    @property
    def is_head(self) -> bool:
        """Whether a classification head answers, so that the student labels and writes nothing."""
        return self.answer == "head"

    @property
    def is_multilabel(self) -> bool:
        """Whether the answer is a set of labels, and not one of them."""
        return self.kind == "multilabel"

    @property
    def is_written(self) -> bool:
        """Whether the student writes the answer, so that there are no labels and no probabilities of them."""
        return self.kind == "generate"

    @property
    def prompt_suffix(self) -> str:
        """What stands between the text and what the student writes: of a chain it writes the reason first."""
        return RATIONALE_SUFFIX if self.chain else self.answer_suffix

    @property
    def room_tokens(self) -> int:
        """Tokens to keep beside the longest text for the suffix, the answer and a reason."""
        return ANSWER_ROOM_TOKENS + (self.max_answer_tokens if self.is_written else 0)

    @property
    def label_names(self) -> list[str]:
        """Names in the order of every probability vector, length L."""
        return [label.name for label in self.labels]

    def fill(self, fields: str | Mapping[str, Any]) -> str:
        """The text that is asked about: the `text` template with its fields, outer blanks taken off, redacted.

        A plain string stands for the only field of the template, with the row's choices below it where it has any.
        What matches a pattern of `redact` was hidden in training too.

        Raises:
            EdgestillError: a field is missing, or the template has several and got a plain string, or nothing is left,
                or choices that are none.
        """
        return redacted(self._filled(fields), self.redact)[0]

    def _filled(self, fields: str | Mapping[str, Any]) -> str:
        if self.choices is None:
            return fill_template(self.text, fields)
        if isinstance(fields, str):
            above, choices = split_choices(fields)
            return with_choices(fill_template(self.text, above), choices)
        if fields.get(self.choices) is None:
            raise EdgestillError(
                f"the field {self.choices!r} is missing; found {sorted(fields)}", "it holds the row's list of choices"
            )
        return with_choices(fill_template(self.text, fields), fields[self.choices])

    def choices_in(self, text: str) -> list[str]:
        """The choices below a filled text; [] for a task whose rows have none.

        Raises:
            EdgestillError: none there, or more than the task has letters.
        """
        if self.choices is None:
            return []
        found = split_choices(text)[1]
        if not 0 < len(found) <= len(self.labels):
            most = self.label_names[-1]
            raise EdgestillError(
                f"the text ends in {len(found)} choices, wanted 2 to {len(self.labels)}",
                f"write them below it, a line each, from 'A) ...' to '{most}) ...' at most",
            )
        return found

    def render(self, text: str, suffix: str) -> str:
        """The prompt as a string: `text` (already filled and cut) and a suffix."""
        return text + suffix

    def encode(self, tokenizer: Any, text: str, suffix: str | None = None) -> list[int]:
        """Token ids of the prompt for a filled text: cut to `max_text_tokens` as the recipe says, then rendered.

        Args:
            tokenizer: a `tokenizers.Tokenizer`.
            text: what `fill` returned.
            suffix: `prompt_suffix` unless given.

        Raises:
            EdgestillError: the text is too long and the task refuses such texts.
        """
        text = self.cut(tokenizer, text)
        ids = tokenizer.encode(self.render(text, suffix or self.prompt_suffix), add_special_tokens=False).ids
        first = [self.bos_token_id] if self.bos_token_id is not None else []
        return [*first, *ids, *([self.eos_token_id] if self.is_head else [])]

    def cut(self, tokenizer: Any, text: str) -> str:
        """`text` shortened to `max_text_tokens` tokens by the rule `too_long`; unchanged when it is short enough.

        What stands above the choices is cut, never the choices.
        """
        tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
        if tokens <= self.max_text_tokens:
            return text
        if self.too_long == "refuse":
            raise EdgestillError(
                f"the text has {tokens} tokens, the task takes at most {self.max_text_tokens}",
                "shorten it, or set data.too_long to cut_tail or cut_head and train again",
            )
        above = split_choices(text)[0] if self.choices is not None else text
        choices, encoding = text[len(above) :], tokenizer.encode(above, add_special_tokens=False)
        room = self.max_text_tokens - (tokens - len(encoding.ids))
        for kept in range(min(room, len(encoding.ids)), 0, -1):  # a cut can make new tokens: rarely more than one try
            if self.too_long == "cut_tail":
                part = above[: encoding.offsets[kept - 1][1]].rstrip()
            else:
                part = above[encoding.offsets[-kept][0] :].lstrip()
            whole = part + choices
            if part and len(tokenizer.encode(whole, add_special_tokens=False).ids) <= self.max_text_tokens:
                return whole
        raise EdgestillError(
            f"no part of the text fits into {self.max_text_tokens} tokens", "raise data.max_text_tokens"
        )

    @cached_property
    def by_place(self) -> "Task":
        """The task of a graph whose outputs are the labels in their order."""
        return replace(self, labels=tuple(replace(label, token_id=place) for place, label in enumerate(self.labels)))

    def chosen(self, chances: Sequence[float]) -> tuple[str, ...]:
        """The names that answer, given the L probabilities of `decode.task_probabilities`: one, or a set in order."""
        if self.is_multilabel:
            return tuple(name for name, p in zip(self.label_names, chances, strict=True) if p >= self.threshold)
        return (self.label_names[max(range(len(chances)), key=chances.__getitem__)],)

    def written(self, names: Sequence[str]) -> str:
        """The answer as one text: the only name, or a set as `label_sets` writes it."""
        return label_sets.join(names, self.label_names) if self.is_multilabel else names[0]

    def index(self, name: str) -> int:
        """Position of a label in every probability vector; -1 for a name the task does not know."""
        return next((i for i, label in enumerate(self.labels) if label.name == name), -1)


def fill_template(template: str, fields: str | Mapping[str, Any]) -> str:
    """`template` with `{field}` replaced; see `Task.fill`."""
    names = template_fields(template)
    if isinstance(fields, str):
        if len(names) != 1:
            raise EdgestillError(
                f"got a plain text, but the template {template!r} has the fields {names}",
                f"pass them by name, such as {dict.fromkeys(names, '...')}",
            )
        fields = {names[0]: fields}
    missing = [name for name in names if fields.get(name) is None]
    if missing:
        raise EdgestillError(f"the field {missing[0]!r} is missing; found {sorted(fields)}, wanted {names}")
    values = fields
    pattern = "|".join(re.escape("{" + name + "}") for name in names)  # one pass: a field's own braces are text
    text = re.sub(pattern, lambda match: str(values[match[0][1:-1]]), template).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EdgestillError("half a surrogate pair, which is no text", "pass text in UTF-8") from None
    if not text:
        raise EdgestillError("the text is empty", "pass at least one word")
    return text


def redacted(text: str, patterns: Sequence[str]) -> tuple[str, int]:
    """`text` with every match of the regular expressions replaced by `[redacted]`, and how many there were."""
    places = 0
    for pattern in patterns:
        text, found = re.subn(pattern, REDACTED, text)
        places += found
    return text, places


def template_fields(template: str) -> list[str]:
    """Field names of a template such as `{title}\\n{body}`, in order, each once."""
    names: list[str] = []
    for piece in template.split("{")[1:]:
        name, brace, _ = piece.partition("}")
        if brace and name.isidentifier() and name not in names:
            names.append(name)
    return names


def first_token_ids(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Id of the first token of each text, encoded on its own."""
    return [int(tokenizer.encode(text, add_special_tokens=False).ids[0]) for text in texts]


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a folder, with special tokens in a user's text read as plain text.

    Raises:
        EdgestillError: no readable tokenizer.json in `folder`.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise EdgestillError(f"{path} is missing", "build the bundle again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise EdgestillError(f"{path} cannot be read: {error}", "build the bundle again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer
