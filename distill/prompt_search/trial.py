"""What one instruction brought: how often the teacher was right, how often it gave a reason, what that cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.ledger import Tally, usd_each
from edgestill.distill.prompt_search.section import PromptSearchSection
from edgestill.distill.teacher.budget import usd_text
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.distill.teacher.section import Price
from edgestill.runtime.metrics import wilson

Said = Annotation | Rejection


@dataclass(frozen=True)
class Trial:
    """One instruction on N rows with gold.

    `round` is 0 for what the recipe gives. `correct` is in the order of the rows; a row without a usable answer is
    wrong. `accuracy` comes with Wilson's 95 % interval. `explanation_rate` is reasons per usable label, None where the
    task wants none; `unusable` counts the other rows by reason. Tokens and money are what the N answers took when they
    were made, whoever paid, in USD as decimal text; None is unknown. `infeasible` says which constraint is broken.
    """

    name: str
    round: int
    instruction: str
    rows: int
    requests: int
    correct: list[bool]
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    explanation_rate: float | None
    unusable: dict[str, int]
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: str | None
    usd_per_label: str | None
    usd_per_rationale: str | None
    rationale_facts: dict[str, Any] | None
    infeasible: str | None = None

    @property
    def rank(self) -> tuple[bool, int, Decimal]:
        """Greater is better: feasible before infeasible, then right answers, then what a usable label costs less."""
        return self.infeasible is None, sum(self.correct), -Decimal(self.usd_per_label or 0)


def make_trial(
    name: str,
    number: int,
    instruction: str,
    answers: Sequence[tuple[Row, Said]],
    search: PromptSearchSection,
    price: Price | None,
    wants_rationale: bool,
) -> Trial:
    """Count the answers to an instruction and hold them against the constraints of `search`."""
    tally = Tally()
    for row, answer in answers:
        tally.add(row, answer)
    correct = [isinstance(answer, Annotation) and answer.label == row.gold for row, answer in answers]
    share = wilson(sum(correct), len(correct))
    assert share is not None, "there are always rows"
    usd = None if tally.tokens is None else tally.tokens.usd(price)
    rate = tally.reasons.count / tally.accepted if wants_rationale and tally.accepted else None
    per_label = usd_each(usd, tally.accepted)
    return Trial(
        name=name,
        round=number,
        instruction=instruction,
        rows=len(correct),
        requests=sum(answer.requests for _, answer in answers),
        correct=correct,
        accuracy=share.value,
        accuracy_low=share.low,
        accuracy_high=share.high,
        explanation_rate=rate,
        unusable=dict(sorted(tally.rejected.items())),
        prompt_tokens=None if tally.tokens is None else tally.tokens.prompt,
        completion_tokens=None if tally.tokens is None else tally.tokens.completion,
        usd=None if usd is None else usd_text(usd),
        usd_per_label=per_label,
        usd_per_rationale=usd_each(usd, tally.reasons.count),
        rationale_facts=tally.reasons.facts(tally.accepted),
        infeasible=_broken(tally.accepted, rate, per_label, search),
    )


def _broken(accepted: int, rate: float | None, usd_per_label: str | None, search: PromptSearchSection) -> str | None:
    if not accepted:
        return "no usable answer"
    if rate is not None and rate < search.min_explanation_rate:
        return f"{rate:.0%} have a reason, wanted {search.min_explanation_rate:.0%}"
    most = search.max_usd_per_label
    if most is not None and usd_per_label is None:
        return "the endpoint tells no tokens, so the cost is unknown"
    if most is not None and Decimal(str(usd_per_label)) > most:
        return f"{usd_text(Decimal(str(usd_per_label)))} USD a label, wanted at most {usd_text(most)}"
    return None


def best(trials: Sequence[Trial]) -> Trial | None:
    """The feasible trial with the most right answers, of equal ones the cheapest, of these the first; None: none."""
    feasible = [trial for trial in trials if trial.infeasible is None]
    return max(feasible, key=lambda trial: trial.rank) if feasible else None


def projected_usd(trial: Trial, rows: int, search_usd: Decimal | None) -> str | None:
    """What all `rows` rows would cost with an instruction: N * (tokens in * price + tokens out * price) + search.

    The formula of arXiv 2403.15886: tokens are the trial's means, requests that brought nothing usable included.
    """
    if trial.usd is None or search_usd is None:
        return None
    return usd_text((Decimal(trial.usd) / trial.rows * rows + search_usd).quantize(Decimal("1e-9")))
