"""A row's own choices, written below its text as lettered lines and read back from there.

A choice is one line: runs of blanks, newlines among them, are written as one blank, so what is read back is the choice
with its blanks so written. Knows no task and no model.
"""

import re
from collections.abc import Sequence

from edgestill.runtime.errors import EdgestillError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FEWEST = 2
_LINE = re.compile(r"([A-Z])\) (\S.*)")


def with_choices(text: str, choices: Sequence[str]) -> str:
    """`text`, and below it a line "A) first", "B) second" and so on for each choice.

    Raises:
        EdgestillError: choices that are one text, fewer than 2 or more than 26 of them, or one that is blank.
    """
    if isinstance(choices, str) or not FEWEST <= len(choices) <= len(LETTERS):
        found = f"the text {choices!r:.60}" if isinstance(choices, str) else f"{len(choices)} choices"
        raise EdgestillError(f"found {found}, wanted a list of {FEWEST} to {len(LETTERS)} choices", "such as [yes, no]")
    lines = [" ".join(str(choice).split()) for choice in choices]
    blank = next((letter for letter, line in zip(LETTERS, lines, strict=False) if not line), None)
    if blank is not None:
        raise EdgestillError(f"choice {blank} is blank, wanted text", "leave it out of the row's list")
    return "\n".join([text, *(f"{letter}) {line}" for letter, line in zip(LETTERS, lines, strict=False))])


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
