"""What a teacher's review of a student's steps says, or the reason why it cannot be used. Guesses nothing.

The questions and the shape of a review are ours: ELAD's own prompt (arXiv 2402.13098) is not known to us.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgestill.distill.elad.steps import bare
from edgestill.distill.teacher.parse import Reading, objects_in

KEYS = {
    "verdicts": ("verdicts", "verdict"),
    "first_error": ("first_error", "first_error_step", "first error", "error_step"),
    "revised_steps": ("revised_steps", "revised", "corrected_steps", "steps"),
    "answer": ("answer", "label", "final_answer"),
}
NONE = ("none", "null", "n/a", "na", "no error", "no errors", "nil", "-", "")
RIGHT = r"no (?:error|mistake)s?|error-free|correct|right|true|ok"
WRONG = r"not (?:correct|right)|contains an? (?:\w+ )?(?:error|mistake)|incorrect|wrong|false|error"
PROSE_VERDICT = re.compile(
    rf"^[^\w\n]*(?:step\s*)?(\d{{1,3}})\W{{1,6}}(?:(?:this|it|that)?\s*is\W+)?({RIGHT}|{WRONG})\b", re.I | re.M
)
PROSE_ERROR = re.compile(r"^[^\w\n]*first\W+(?:error|mistake|wrong)(?:\W+step)?\W*?[:=]\W*(.*)$", re.I | re.M)
PROSE_STEPS = re.compile(
    r"^[^\w\n]*(?:revised|corrected)(?:\W+steps?)?\W*[:=][ *]*\n?((?:[^\n]*\S[^\n]*(?:\n|\Z))*)", re.I | re.M
)
PROSE_ANSWER = re.compile(r"^[^\w\n]*(?:(?:final|correct(?:ed)?)\W+)?answer\W*?[:=][\s*]*(\S.*?)[\s*]*$", re.I | re.M)
STEP_NUMBER = re.compile(r"\W*(?:step\W*)?(\d{1,3})(?:\W.*)?", re.I | re.S)


@dataclass(frozen=True)
class Findings:
    """What a review says of the steps: verdicts by their number, counted from 1, and the first wrong one, if any."""

    verdicts: Mapping[int, bool]
    first_error: int | None


@dataclass(frozen=True)
class Review:
    """A review that agrees with itself. `revised_steps` stand for the student's from `first_error` on."""

    verdicts: Mapping[int, bool]
    first_error: int | None
    revised_steps: tuple[str, ...]
    answer: str


class Contradiction(ValueError):
    """Why a review cannot be used, in words that its repair may quote."""


def read_review(content: str, steps: int, match: Callable[[object], str | None]) -> Review | Reading:
    """Judge the text of a review: an object with the keys of `KEYS` wherever it stands, or lines of prose.

    Args:
        content: the answer as it came.
        steps: how many the student wrote.
        match: the allowed answer that a value is, None for one that is not allowed.

    Returns:
        The review, or a Reading with the reason: unparsable where something is missing or contradicts itself,
        label_not_allowed for an answer that is not one of the task's.
    """
    try:
        said = _said(content)
        found = _findings(said, steps)
        new = _texts(said.get("revised_steps")) if found.first_error is not None else ()
        if found.first_error is not None and not new:
            raise Contradiction(f"step {found.first_error} is wrong, but revised_steps is empty")
        if "answer" not in said or said["answer"] is None or not str(said["answer"]).strip():
            raise Contradiction("the review has no answer")
    except Contradiction as problem:
        return Reading(reason="unparsable", detail=str(problem))
    answer = match(said["answer"])
    if answer is None:
        return Reading(reason="label_not_allowed", detail=f"answer is {str(said['answer'])[:80]!r}")
    return Review(found.verdicts, found.first_error, new, answer)


def find_error(content: str, steps: int) -> Findings | Reading:
    """What a review says of the steps, whether or not it also corrects them."""
    try:
        return _findings(_said(content), steps)
    except Contradiction as problem:
        return Reading(reason="unparsable", detail=str(problem))


def _said(content: str) -> dict[str, Any]:
    """The parts of a review by our names for them; of prose where no object holds any."""
    found = [said for each in objects_in(content) if (said := _named(each))]
    if not found:
        return _prose(content)
    if any(said != found[0] for said in found):
        raise Contradiction("several reviews that differ")
    return found[0]


def _named(each: Mapping[str, Any]) -> dict[str, Any]:
    """An object's values under our names, if it is a review: it says which step is wrong."""
    named = {name: each[key] for name, keys in KEYS.items() for key in keys if key in each}
    return named if "verdicts" in named or "first_error" in named else {}


def _prose(content: str) -> dict[str, Any]:
    """The parts of a review that is written in lines."""
    said: dict[str, Any] = {}
    verdicts = {int(number): word for number, word in reversed(PROSE_VERDICT.findall(content))}
    if verdicts:
        said["verdicts"] = [{"step": number, "verdict": word} for number, word in sorted(verdicts.items())]
    errors = {_number(text) for text in PROSE_ERROR.findall(content)}
    if len(errors) > 1:
        raise Contradiction("several first errors")
    if errors:
        (said["first_error"],) = errors
    if not said:
        raise Contradiction("no JSON object with verdicts and first_error")
    if (steps := PROSE_STEPS.search(content)) is not None:
        said["revised_steps"] = [line for line in steps[1].splitlines() if not PROSE_ANSWER.match(line)]
    if answers := PROSE_ANSWER.findall(content):
        said["answer"] = answers[-1]
    return said


def _findings(said: Mapping[str, Any], steps: int) -> Findings:
    """Verdicts and first error, as far as they agree."""
    verdicts = _verdicts(said.get("verdicts"))
    beyond = next((number for number in verdicts if not 1 <= number <= steps), None)
    if beyond is not None:
        raise Contradiction(f"a verdict is on step {beyond}, but the student wrote {steps} steps")
    judged_wrong = min((number for number, right in verdicts.items() if not right), default=None)
    if "first_error" not in said:
        unjudged = next((k for k in range(1, judged_wrong or steps + 1) if k not in verdicts), None)
        if unjudged is not None:
            raise Contradiction(f"no first_error, and no verdict on step {unjudged}")
        return Findings(verdicts, judged_wrong)
    first = _number(said["first_error"])
    if first in (0, -1) and judged_wrong is None:  # how some write that there is none
        first = None
    if first is not None and not 1 <= first <= steps:
        raise Contradiction(f"first_error is {first}, but the student wrote {steps} steps, counted from 1")
    if judged_wrong is not None and (first is None or judged_wrong < first):
        raise Contradiction(f"first_error is {first}, but the verdict on step {judged_wrong} is WRONG")
    if first is not None and verdicts.get(first) is True:
        raise Contradiction(f"first_error is {first}, but the verdict on step {first} is CORRECT")
    return Findings(verdicts, first)


def _verdicts(said: object) -> dict[int, bool]:
    """Verdicts by the number of their step: in order, or each with its number."""
    found: dict[int, bool] = {}
    if isinstance(said, Mapping):
        items: list[Any] = [{"step": step, "verdict": verdict} for step, verdict in said.items()]
    else:
        items = list(said) if isinstance(said, list | tuple) else [] if said is None else [said]
    for place, item in enumerate(items, start=1):
        number, verdict = place, item
        if isinstance(item, Mapping):
            number = _number(item.get("step", place)) or place
            verdict = next((item[key] for key in ("verdict", "judgement", "judgment") if key in item), None)
        right = _is_right(verdict)
        if found.setdefault(number, right) != right:
            raise Contradiction(f"step {number} has two verdicts")
    return found


def _is_right(verdict: object) -> bool:
    """Whether a verdict says that a step is correct."""
    if isinstance(verdict, bool):
        return verdict
    words = bare(verdict).strip(" *_.\"'").lower() if isinstance(verdict, str) else ""
    for pattern, right in ((RIGHT, True), (WRONG, False)):
        if re.match(rf"(?:{pattern})\b", words):
            return right
    raise Contradiction(f"the verdict {verdict!r:.80} is neither CORRECT nor WRONG")


def _number(said: object) -> int | None:
    """The number of a step, None for no step."""
    if said is None or (isinstance(said, str) and said.strip(" *_.\"'").lower() in NONE):
        return None
    if isinstance(said, int | float) and not isinstance(said, bool) and said == int(said):
        return int(said)
    if isinstance(said, str) and (match := STEP_NUMBER.fullmatch(said.strip())) is not None:
        return int(match[1])
    raise Contradiction(f"first_error is {said!r:.80}, wanted the number of a step or null")


def _texts(said: object) -> tuple[str, ...]:
    """Steps as texts: a list of them, or one text of several lines."""
    given: Sequence[object] = said.splitlines() if isinstance(said, str) else said if isinstance(said, list) else ()
    items = [_text_in(item) if isinstance(item, Mapping) else item for item in given]
    if not all(isinstance(item, str) for item in items):
        raise Contradiction("revised_steps holds something else than texts")
    return tuple(text for item in items if (text := str(item).strip()) and bare(text))


def _text_in(step: Mapping[Any, Any]) -> object:
    """The text of a step that is an object: its only one."""
    texts = [value for value in step.values() if isinstance(value, str)]
    return texts[0] if len(texts) == 1 else None
