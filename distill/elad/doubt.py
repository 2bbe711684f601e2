"""How unsure a student is of each of some rows, by what it writes about them: see `uncertainty` for the formulas."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from edgestill.distill.elad import uncertainty
from edgestill.distill.elad.explainer import Explainer, Place
from edgestill.distill.elad.steps import prefixes
from edgestill.runtime.choices import choices_of

if TYPE_CHECKING:
    from edgestill.distill.select.elad import Elad


@dataclass(frozen=True)
class Doubt:
    """What the student wrote about a row, what it answered, and its uncertainties, each in [0, 1]."""

    explanation: str
    answer: str
    intra: float
    inter: float
    score: float


def doubts(explainer: Explainer, texts: Sequence[str], how: "Elad") -> list[Doubt]:
    """Of each text; what is drawn depends on the seed and the text, not on the other texts, up to rounding."""
    explained = explainer.explain(texts)
    starts = [prefixes(explanation) for explanation, _ in explained]
    within = _within(explainer, texts, starts, how)
    between = _between(explainer, texts, starts, how)
    scores = [uncertainty.blend(a, b, how.beta) for a, b in zip(within, between, strict=True)]
    rows = zip(explained, within, between, scores, strict=True)
    return [Doubt(explanation, answer, *numbers) for (explanation, answer), *numbers in rows]


def _within(explainer: Explainer, texts: Sequence[str], starts: Sequence[tuple[str, ...]], how: "Elad") -> list[float]:
    """U_intra of each text; 0 where it has no weight."""
    if how.beta == 0:
        return [0.0] * len(texts)
    places = [(text, start) for text, each in zip(texts, starts, strict=True) for start in each]
    counts = map(len, starts)
    if how.intra == "hard" or explainer.task.is_written:
        answers = iter(explainer.answers(places))
        return [uncertainty.intra_hard(list(islice(answers, count))) for count in counts]
    chances = iter(explainer.chances(places))
    return [uncertainty.intra_soft(list(islice(chances, count))) for count in counts]


def _between(explainer: Explainer, texts: Sequence[str], starts: Sequence[tuple[str, ...]], how: "Elad") -> list[float]:
    """U_inter of each text; 0 where it has no weight."""
    if how.beta == 1:
        return [0.0] * len(texts)
    from_each = [each[:-1] or ("",) if how.inter == "each_step" else ("",) for each in starts]
    places = [(text, start) for text, each in zip(texts, from_each, strict=True) for start in each]
    drawn = [(place, number) for place in places for number in range(how.samples)]
    seeds = [_seed(how.seed, place, number) for place, number in drawn]
    answers = iter(explainer.sampled_answers([place for place, _ in drawn], seeds))
    votes = [[list(islice(answers, how.samples)) for _ in each] for each in from_each]
    return [uncertainty.inter(each, _answers(explainer, text)) for each, text in zip(votes, texts, strict=True)]


def _answers(explainer: Explainer, text: str) -> int | None:
    """How many answers a text can get; None: free ones."""
    task = explainer.task
    return len(choices_of(text)) if task.choices is not None else len(task.labels) or None


def _seed(seed: int, place: Place, number: int) -> int:
    digest = hashlib.sha256(repr((seed, place, number)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
