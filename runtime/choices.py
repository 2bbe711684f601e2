"""A row's own choices, written below its text as lettered lines and read back from there.

A choice is one line: runs of blanks, newlines among them, are written as one blank, so what is read back is the choice
with its blanks so written. Knows no task and no model.
"""

import re
from collections.abc import Mapping, Sequence

from edgestill.runtime.errors import EdgestillError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FEWEST = 2
_LINE = re.compile(r"([A-Z])\) (\S.*)")


def with_choices(text: str, choices: Sequence[str]) -> str:
    """`text`, and below it a line "A) first", "B) second" and so on for each choice.

    Raises:
        EdgestillError: choices that are no list, fewer than 2 or more than 26 of them, or one that is blank.
    """
    if not isinstance(choices, list | tuple) or not FEWEST <= len(choices) <= len(LETTERS):
        wanted = f"wanted a list of {FEWEST} to {len(LETTERS)} choices"
        hint = "give the list of its texts alone" if isinstance(choices, Mapping) else "such as [yes, no]"
        raise EdgestillError(f"found {_named(choices)}, {wanted}", hint)
    lines = [" ".join(str(choice).split()) for choice in choices]
    blank = next((letter for letter, line in zip(LETTERS, lines, strict=False) if not line), None)
    if blank is not None:
        raise EdgestillError(f"choice {blank} is blank, wanted text", "leave it out of the row's list")
    return "\n".join([text, *(f"{letter}) {line}" for letter, line in zip(LETTERS, lines, strict=False))])


def _named(choices: object) -> str:
    if isinstance(choices, list | tuple):
        return f"{len(choices)} choices"
    if isinstance(choices, Mapping):
        return f"a mapping of {list(choices)!r:.60}"
    return f"the {'text' if isinstance(choices, str) else type(choices).__name__} {choices!r:.60}"


def split_choices(text: str) -> tuple[str, list[str]]:
    """(what stands above the choices, the choices) of a text that `with_choices` wrote; (text, []) of any other."""
    lines = text.split("\n")
    found: list[str] = []
    for number in range(len(lines) - 1, 0, -1):  # the text above keeps at least its first line
        match = _LINE.fullmatch(lines[number])
        if match is None:
            break
        found.append(match[2])
        if match[1] == LETTERS[0]:
            letters = "".join(line[0] for line in lines[number:])
            whole = len(found) >= FEWEST and LETTERS.startswith(letters)
            return ("\n".join(lines[:number]), found[::-1]) if whole else (text, [])
    return text, []


def choices_of(text: str) -> list[str]:
    """The choices at the end of a text that `with_choices` wrote; [] where there are none."""
    return split_choices(text)[1]
