"""What became of the rows and of the money: counts that add up, and costs that say unknown where they are.

Counts what others did; asks nobody and writes nothing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.rationales import RationaleTally, facts_line
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.budget import Tokens, usd_text
from edgestill.distill.teacher.protocol import Annotation, Rejection, Spending
from edgestill.distill.teacher.section import Price
from edgestill.runtime.manifest import LATER
from edgestill.runtime.metrics import wilson


@dataclass(frozen=True)
class NotSelected:
    """A row that nobody was asked about: the recipe's strategy wanted others."""

    row_id: str


Answer = Annotation | Rejection | NotSelected | None


@dataclass(frozen=True)
class Ledger:
    """The manifest of an annotations folder; accepted + rejected + pending + not_selected == rows.

    Money is USD as decimal text, None where it is unknown, never 0 for unknown:
    - `spent_usd`, `spent_usd_by_split`, `requests`: what this run has sent and paid since its folder exists; requests
      of which nothing is known (resets, time-outs, kills) count at their worst case, and `worst_case` says how many.
    - `recorded_usd`, `usd_per_label`, `usd_per_rationale`: what all answers used here cost when they were made,
      unusable ones included, whoever paid; per usable label, per usable rationale.
    - `usd_per_1000_requests`: the teacher's price of an answer, over the test rows, without votes.

    `cached` counts answers used here that this run did not buy. `self_agreement` is how often a second, equal request
    got the same label: the ceiling for a student's agreement. `rationale_facts` says what the reasons are like, see
    `RationaleTally.facts`. `stopped` says why asking ended early. `selection` tells what a strategy that did not ask
    about all rows chose, see `annotate`.
    """

    inputs_sha256: str
    recipe_sha256: str
    teacher: str
    license_note: str | None
    price_usd_per_mtok: dict[str, str | None] | None
    rows: int
    accepted: int
    rejected: dict[str, int]
    pending: int
    corrected: int
    redacted: int
    requests: int
    cached: int
    worst_case: int
    spent_usd: str | None
    spent_usd_by_split: dict[str, str] | None
    recorded_usd: str | None
    usd_per_label: str | None
    usd_per_rationale: str | None
    usd_per_1000_requests: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    rationales: int
    self_agreement: dict[str, float] | None
    splits: dict[str, int]
    stopped: str | None
    rows_sha256: str
    not_selected: int = field(default=0, metadata=LATER)
    selection: dict[str, Any] | None = field(default=None, metadata=LATER)
    rationale_facts: dict[str, Any] | None = field(default=None, metadata=LATER)
    schema: str = "edgestill-annotations/2"

    @property
    def summary(self) -> str:
        """The counts, the money, and how far the teacher agrees with itself: a line each."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items()) or "none"
        money = "unknown (no price in the recipe)" if self.spent_usd is None else f"{_short(self.spent_usd)} USD"
        per = "" if self.usd_per_label is None else f", {_short(self.usd_per_label)} USD a usable label"
        lines = [
            f"{self.rows} rows: {self.accepted} accepted, rejected: {reasons}, {self.pending} pending"
            + (f", {self.not_selected} not selected" if self.not_selected else ""),
            f"{self.requests} requests sent, {self.cached} answers from the cache or a file; spent {money}{per}",
        ]
        if (again := self.self_agreement) is not None:
            interval = f"[{again['low']:.1%}, {again['high']:.1%}]"
            lines.append(f"asked twice, {again['rows']} rows get the same label in {again['share']:.1%} {interval}")
        if self.rationale_facts is not None:
            lines.append(facts_line(self.rationale_facts))
        return "\n".join(lines)

    @property
    def unfinished(self) -> int:
        """Rows that the same command would ask again."""
        return self.pending + self.rejected.get("endpoint_error", 0)

    @property
    def goes_on(self) -> bool:
        """Whether the same command would ask again: about rows that it asked before, or about some not chosen yet."""
        return self.unfinished > 0 or (self.not_selected > 0 and self.stopped is not None)


class Tally:
    """Counts while rows stream by: memory does not grow with the rows."""

    def __init__(self) -> None:
        self.rows = self.accepted = self.pending = self.corrected = self.cached = 0
        self.rejected: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.agrees: Counter[bool] = Counter()
        self.not_selected = 0
        self.reasons = RationaleTally()
        self.tokens: Tokens | None = Tokens()
        self.test_tokens: Tokens | None = Tokens()

    def add(self, row: Row, answer: Answer) -> None:
        """Count one row and what became of it."""
        self.rows += 1
        if answer is None:
            self.pending += 1
            return
        if isinstance(answer, NotSelected):
            self.not_selected += 1
            return
        self.cached += answer.requests - answer.bought_here
        self.tokens = _plus(self.tokens, _tokens(answer))
        if isinstance(answer, Rejection):
            self.rejected[answer.reason] += 1
            return
        self.accepted += 1
        self.splits[row.split] += 1
        self.corrected += answer.corrected
        if answer.rationale:
            self.reasons.add(answer.rationale)
        if answer.agrees is not None:
            self.agrees[answer.agrees] += 1
        if row.split == "test":
            self.test_tokens = _plus(self.test_tokens, _tokens(answer, with_extra=False))

    def ledger(self, recipe: Recipe, spending: Spending, **facts: Any) -> Ledger:
        """The finished ledger; `facts` are the fields that rows do not tell."""
        price = recipe.teacher.price_usd_per_mtok
        recorded = None if self.tokens is None else self.tokens.usd(price)
        per_test = None if self.test_tokens is None else self.test_tokens.usd(price)
        tests = self.splits["test"]
        return Ledger(
            recipe_sha256=recipe.sha256(),
            license_note=recipe.teacher.license_note,
            price_usd_per_mtok=None if price is None else price.model_dump(mode="json"),
            rows=self.rows,
            accepted=self.accepted,
            rejected=dict(sorted(self.rejected.items())),
            pending=self.pending,
            corrected=self.corrected,
            requests=spending.requests,
            cached=self.cached,
            worst_case=spending.worst_case,
            spent_usd=spending.usd,
            spent_usd_by_split=spending.usd_by_split,
            recorded_usd=None if recorded is None else usd_text(recorded),
            usd_per_label=usd_each(recorded, self.accepted),
            usd_per_rationale=usd_each(recorded, self.reasons.count),
            usd_per_1000_requests=None if per_test is None or not tests else float(per_test / tests * 1000),
            prompt_tokens=None if self.tokens is None else self.tokens.prompt,
            completion_tokens=None if self.tokens is None else self.tokens.completion,
            rationales=self.reasons.count,
            self_agreement=_agreement(self.agrees),
            splits=dict(self.splits),
            not_selected=self.not_selected,
            rationale_facts=self.reasons.facts(self.accepted),
            **facts,
        )


def row_usd(price: Mapping[str, str | None] | None, answer: Answer) -> Decimal | None:
    """What a row's requests cost by a ledger's price; None where price or tokens are unknown."""
    tokens = _tokens(answer)
    return None if tokens is None or price is None else tokens.usd(Price.model_validate(price))


def _tokens(answer: Answer, with_extra: bool = True) -> Tokens | None:
    """What a row's answer took; None when the endpoint told none."""
    if answer is None or isinstance(answer, NotSelected):
        return Tokens()
    if answer.prompt_tokens is None or answer.completion_tokens is None:
        return None
    own = Tokens(answer.prompt_tokens, answer.cached_tokens or 0, answer.completion_tokens)
    if not with_extra or not isinstance(answer, Annotation):
        return own
    if answer.extra_prompt_tokens is None or answer.extra_completion_tokens is None:
        return None
    return own + Tokens(answer.extra_prompt_tokens, 0, answer.extra_completion_tokens)


def _plus(total: Tokens | None, more: Tokens | None) -> Tokens | None:
    return None if total is None or more is None else total + more


def usd_each(usd: Decimal | None, count: int) -> str | None:
    """The money divided by a count, to 9 places; None where one of them is not there."""
    return None if usd is None or not count else f"{(usd / count).quantize(Decimal('1e-9')):f}"


def _agreement(agrees: Counter[bool]) -> dict[str, float] | None:
    """Share of rows asked twice that got the same label twice, with Wilson's 95 % interval."""
    estimate = wilson(agrees[True], agrees.total())
    if estimate is None:
        return None
    return {"rows": agrees.total(), "share": estimate.value, "low": estimate.low, "high": estimate.high}


def _short(usd: str) -> str:
    """Decimal text to six places, without trailing zeros."""
    return f"{Decimal(usd):.6f}".rstrip("0").rstrip(".") or "0"
