"""An explanation as steps, and back. Pure text; judges nothing."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

# "Step 2:", "2.", "(2)", "- " at the beginning of a step
HEAD = re.compile(
    r"^(?:[-*•]\s+|\**\(?(?:step\s*)?\d{1,3}\s*[.:)]+\**(?=\s|$)\s*|step\s*\d{1,3}\s+-\s+)", re.IGNORECASE
)
MARK = re.compile(r"(?<=\s)(?=\**step\s*\d{1,3}\s*[.:)])", re.IGNORECASE)
LINE = re.compile(r"\n+")
# After the end of a sentence (also a full-width one), but not after "e.g." or a title.
SENTENCE = re.compile(
    r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bMrs\.)(?<!\bvs\.)(?<!\betc\.)\s+"
    r"|(?<=[.!?][\"')\]])\s+|(?<=[\u3002\uff01\uff1f])"
)


def split_steps(explanation: str) -> tuple[str, ...]:
    """The steps of an explanation: its lines; of one line what begins with "Step k:"; else its sentences.

    No step is empty or has blanks around it, and the steps hold all of the text but blanks, in order.
    """
    return tuple(explanation[start:end] for start, end in _places(explanation))


def prefixes(explanation: str) -> tuple[str, ...]:
    """What is written before the first step, after it, ... and after the last of n steps: n + 1 texts, the first ""."""
    return ("", *(explanation[:end].lstrip() for _, end in _places(explanation)))


def join_steps(steps: Sequence[str], like: str) -> str:
    """Steps as one text: a line each where `like` has several lines, else one after the other."""
    return ("\n" if "\n" in like.strip() else " ").join(steps)


def revised(explanation: str, first_error: int | None, corrected: Sequence[str]) -> str:
    """The student's explanation up to its first wrong step, counted from 1, and the teacher's steps from there on.

    Without an error it stays as it is. The teacher's steps lose a number at their head where the student writes none,
    and the student's own steps where the teacher repeats them first.
    """
    if first_error is None:
        return explanation
    kept = split_steps(explanation)[: first_error - 1]
    numbered = any(HEAD.match(step) for step in split_steps(explanation))
    new = [" ".join((step if numbered else bare(step)).split()) for step in corrected]
    if [bare(step) for step in new[: len(kept)]] == [bare(step) for step in kept]:
        new = new[len(kept) :]
    return join_steps([*kept, *(step for step in new if step)], explanation)


def bare(step: str) -> str:
    """A step without the number at its head."""
    return HEAD.sub("", step.strip()).strip()


def _places(text: str) -> list[tuple[int, int]]:
    """Start and end of each step."""
    for cut in (LINE, MARK, SENTENCE):
        pieces = list(_pieces(text, cut))
        if len(pieces) > 1:
            break
    places: list[tuple[int, int]] = []
    for start, end in pieces:
        if places and not bare(text[slice(*places[-1])]):  # a number alone is the head of what follows
            places[-1] = (places[-1][0], end)
        else:
            places.append((start, end))
    return places


def _pieces(text: str, cut: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """What lies between the cuts, without blanks around it and without what is empty."""
    ends = [(0, 0), *(match.span() for match in cut.finditer(text)), (len(text), len(text))]
    for (_, start), (end, _) in pairwise(ends):
        piece = text[start:end]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
