"""Two systems on the same rows: the paired test and its meaning in plain words. Reads nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgestill.benchmarks.reference import Answers, Reference
from edgestill.runtime.metrics import Estimate, PairedTest, paired_test, unseen_share

ALPHA = 0.05
# How much worse a system may be and still be called not inferior, as a share of the rows.
MARGIN = 0.03
WINS, LOSES, UNDECIDED = "wins", "loses", "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """System A (an artifact) against system B.

    `difference` is the share of rows that A has right minus that of B, with its paired-bootstrap 95 % interval;
    `only_a`, `only_b` count rows that one alone has right; `p_value` is McNemar's exact test, two-sided, not corrected
    for the number of comparisons. `outcome` is A's: wins, loses, or no difference shown. `non_inferior` says whether
    A is shown to be at most `margin` (a share) worse than B.
    """

    a: str
    b: str
    difference: Estimate
    only_a: int
    only_b: int
    p_value: float
    outcome: str
    verdict: str
    margin: float
    non_inferior: bool


def compare_all(reference: Reference, artifacts: Sequence[Answers], best: Answers) -> Iterator[Comparison]:
    """Every artifact against floor, teacher, and the base and torch of its own student, as far as a bundle has them.

    Students meet each other only where one may matter: every artifact against `best`, when that is another student's
    artifact. Judged by gold; without gold by the teacher's labels, and then the teacher itself is no opponent: it would
    always be right.
    """
    for artifact in artifacts:
        own = (reference.teacher, *(s for s in reference.systems if s.student in (None, artifact.student)))
        others = {answers.kind: answers for answers in own}
        for kind in ("floor", "teacher", "base", "student"):
            if kind in others and not (kind == "teacher" and reference.gold is None):
                yield compare(artifact, others[kind], reference.truth)
        if best.student not in (None, artifact.student):
            yield compare(artifact, best, reference.truth)


def compare(a: Answers, b: Answers, truth: Sequence[str]) -> Comparison:
    """A against B on N rows with the right labels `truth`, N >= 1."""
    right_a = [label == wanted for label, wanted in zip(a.labels, truth, strict=True)]
    right_b = [label == wanted for label, wanted in zip(b.labels, truth, strict=True)]
    test = paired_test(right_a, right_b)
    outcome = decide(test.difference, test.p_value)
    return Comparison(
        a=a.name,
        b=b.name,
        difference=test.difference,
        only_a=test.only_a,
        only_b=test.only_b,
        p_value=test.p_value,
        outcome=outcome,
        verdict=say(a.name, b.name, test.difference, outcome),
        margin=MARGIN,
        non_inferior=lowest(test, len(truth)) > -MARGIN,
    )


def lowest(test: PairedTest, n: int) -> float:
    """The lower end of the difference over n rows; where no row tells the two apart, what so few rows can hide."""
    return test.difference.low if test.only_a + test.only_b else -unseen_share(n)


def decide(difference: Estimate, p_value: float) -> str:
    """A difference is shown when the exact test and the interval both say so."""
    if p_value < ALPHA and difference.low > 0:
        return WINS
    if p_value < ALPHA and difference.high < 0:
        return LOSES
    return UNDECIDED


def say(a: str, b: str, difference: Estimate, outcome: str) -> str:
    """One sentence in percentage points, such as "the student beats the floor by 12.3 points [6.1, 18.5]"."""
    value, low, high = (100 * x + 0.0 for x in (difference.value, difference.low, difference.high))
    if outcome == WINS:
        return f"the {a} beats the {b} by {value:.1f} points [{low:.1f}, {high:.1f}]"
    if outcome == LOSES:
        return f"the {b} wins by {-value:.1f} points [{-high:.1f}, {-low:.1f}] over the {a}"
    return f"no difference shown between the {a} and the {b}: {value:+.1f} points [{low:+.1f}, {high:+.1f}]"
