"""The teacher's reasons: which of them a student learns from, and what they are like. Asks nobody, trains nothing."""

import dataclasses
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from edgestill.distill.chance import chance

if TYPE_CHECKING:
    from edgestill.distill.student_section import TrainSection
    from edgestill.distill.teacher.protocol import Annotation

MissingRationales = Literal["mask", "blank"]
BLANK = ""  # a reason that is learnt as nothing but a blank and the end; None is a reason that is not learnt
WORD = re.compile(r"[^\W_]+(?:['\u2019.-][^\W_]+)*")
# before a blank and a small letter no sentence ends: "e.g. this"
SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u2019\u201d)\]]*(?=\s+[^\Wa-z]|\s+\W|\s*$)")
VOWELS = re.compile("[aeiouy]+")
# silent: e as in made and statement, es as in makes, ed as in asked; but not in table, the, boxes, churches, wanted
SILENT = re.compile(
    r"(?<![aeiouyl])e(?=(?:ment|ness|less|ful|ly)s?$)|(?:(?<![aeiouyl])e|(?<=[aeiouy]l)e|(?<![aeiouylscxzg])(?<![cs]h)es"
    r"|(?<=[aeiouy]l)es|(?<![aeiouydtl])ed|(?<=[aeiouyl]l)ed)$"
)


def covered(answer: "Annotation", train: "TrainSection") -> "Annotation":
    """The answer with the reason that `train.rationale_coverage` leaves it; its label stays as it is.

    A row keeps its reason where the hash of its id and of `train.seed`, a number in [0, 1), is below the coverage. So
    the rows with reasons at 0.33 are among those at 0.66, and a row's lot does not depend on the other rows. A row
    without a reason, of the teacher or by this, is as `train.missing_rationales` says: "mask" leaves it without the
    second task; "blank" gives it a blank to learn, as the published code of arXiv 2403.15886 does.
    """
    if answer.rationale and chance(answer.row_id, train.seed, "rationale") < train.rationale_coverage:
        return answer
    return dataclasses.replace(answer, rationale=BLANK if train.missing_rationales == "blank" else None)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one text, or of several joined."""

    words: int = 0
    sentences: int = 0
    syllables: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.words + other.words, self.sentences + other.sentences, self.syllables + other.syllables)

    @property
    def flesch(self) -> float | None:
        """Reading ease: 206.835 - 1.015 words / sentence - 84.6 syllables / word (Flesch 1948); None without words.

        Higher is easier, 60 to 70 is plain English. The weights were fitted to English: of another language, and of
        texts that are not prose, the number says nothing.
        """
        if not self.words or not self.sentences:
            return None
        return 206.835 - 1.015 * self.words / self.sentences - 84.6 * self.syllables / self.words


def count(text: str) -> Counts:
    """Words, sentences and syllables of a text; what follows the last full stop is a sentence too, if it has a word."""
    words = WORD.findall(text)
    parts = [part for part in SENTENCE_END.split(text) if WORD.search(part)]
    return Counts(len(words), len(parts), sum(map(syllables, words)))


def syllables(word: str) -> int:
    """About how many syllables an English word has: its groups of vowels without silent ones, at least one.

    A rule of spelling without a dictionary: it errs on words such as "idea", "create" or "rhythm". The parts of a word
    with hyphens count each; what follows an apostrophe does not.
    """
    parts = word.lower().replace("\u2019", "'").split("-")
    return sum(max(1, len(VOWELS.findall(SILENT.sub("", part.partition("'")[0])))) for part in parts)


class Spread:
    """Mean and standard deviation of a stream (Welford 1962)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        """One value more."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    @property
    def sd(self) -> float | None:
        """The sample's standard deviation; None of fewer than two."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else None


class RationaleTally:
    """What the reasons are like, counted while they stream by: memory grows with the longest one, not with the rows."""

    def __init__(self) -> None:
        self.joined, self.lengths = Counts(), Counter[int]()
        self.words, self.characters, self.sentences, self.flesch = Spread(), Spread(), Spread(), Spread()

    def add(self, rationale: str) -> None:
        """One reason more."""
        found = count(rationale)
        self.joined += found
        self.lengths[found.words] += 1
        self.words.add(found.words)
        self.characters.add(len(rationale))
        self.sentences.add(found.sentences)
        if found.flesch is not None:
            self.flesch.add(found.flesch)

    @property
    def count(self) -> int:
        """How many there were."""
        return self.words.count

    def facts(self, accepted: int) -> dict[str, Any] | None:
        """Plain numbers of all reasons, None where there are none.

        `rate` is reasons per accepted row; `words` has mean, sd and the percentiles p5, p50, p95; `flesch` is the
        reading ease of all reasons joined, `flesch_sd` its spread over rows (arXiv 2403.15886 reports them all).
        """
        if not self.count:
            return None
        percentiles = {f"p{p}": self._percentile(p / 100) for p in (5, 50, 95)}
        return {
            "rate": self.count / accepted,
            "words": {"mean": self.words.mean, "sd": self.words.sd} | percentiles,
            "characters": {"mean": self.characters.mean, "sd": self.characters.sd},
            "sentences": {"mean": self.sentences.mean, "sd": self.sentences.sd},
            "flesch": self.joined.flesch,
            "flesch_sd": self.flesch.sd,
        }

    def _percentile(self, share: float) -> int:
        """The smallest length that at least so large a share of the reasons does not exceed."""
        wanted, seen = share * self.count, 0
        for length in sorted(self.lengths):
            seen += self.lengths[length]
            if seen >= wanted:
                return length
        raise AssertionError("no reason was counted")


def facts_line(facts: dict[str, Any]) -> str:
    """The facts of `RationaleTally` in one line."""
    words, ease = facts["words"], facts["flesch"]
    said = "" if ease is None else f", Flesch reading ease {ease:.0f}"
    return f"{facts['rate']:.1%} have a reason: {words['mean']:.0f} words ({words['p5']} to {words['p95']}){said}"
