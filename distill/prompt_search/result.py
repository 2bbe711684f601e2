"""What a search found, as search.json holds it and as people read it. Decides and asks nothing."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgestill.distill.prompt_search.trial import Trial

FILE_NAME = "search.json"
HEADER = (
    f"{'accuracy':>8}  {'95 %':<16} {'reasons':>7} {'unusable':>8} {'words':>5} {'Flesch':>6} {'tokens':>13} "
    f"{'USD/1,000':>9}  instruction"
)


@dataclass(frozen=True)
class PromptSearch:
    """A search for the teacher's instruction.

    `rows` counts those scored, held out, and all of the recipe. `trials` are all candidates in the order of trying, on
    the scored rows; `refused` counts proposals that were not tried. `chosen` is the name of the best feasible one, None
    without any. `held_out` are the trials on rows that nothing was chosen by, under "start", "chosen" (where it is
    another) and "few_shot"; `against_start`, `against_few_shot` are paired tests of the chosen on these. `search_usd`
    is what the trials and proposals cost when they were made, `spent_usd` what this folder paid, held-out rows
    included. `projected_usd` is what all rows of the recipe would cost by each prompt, with the search for the chosen.
    USD as decimal text, None is unknown.
    """

    recipe_sha256: str
    gold_sha256: str
    teacher: str
    objective: dict[str, Any]
    rows: dict[str, int]
    dropped: dict[str, int]
    rounds: int
    trials: tuple[Trial, ...]
    refused: dict[str, int]
    chosen: str | None
    held_out: dict[str, Trial]
    against_start: dict[str, Any] | None
    against_few_shot: dict[str, Any] | None
    requests: int
    search_usd: str | None
    spent_usd: str | None
    projected_usd: dict[str, str | None]
    stopped: str | None
    schema: str = "edgestill-prompt-search/1"

    @property
    def instruction(self) -> str | None:
        """The chosen one."""
        return next((trial.instruction for trial in self.trials if trial.name == self.chosen), None)

    @property
    def text(self) -> str:
        """The table of candidates, the held-out verdict, the money, and the line for the recipe."""
        dropped = "".join(f", {count} {reason} left out" for reason, count in self.dropped.items())
        lines = [f"{self.rows['scored']} rows scored, {self.rows['held_out']} held out{dropped}", "", HEADER]
        lines += map(_line, sorted(self.trials, key=lambda trial: trial.rank, reverse=True))
        refused = ", ".join(f"{count} {reason}" for reason, count in self.refused.items())
        lines += [f"not tried: {refused}"] if refused else []
        lines += ["", *self._verdict(), *self._money()]
        if self.instruction is not None:
            lines += [
                "",
                "In the recipe, under task:",
                f"instruction: {json.dumps(self.instruction, ensure_ascii=False)}",
            ]
        return "\n".join(lines)

    def _verdict(self) -> Iterator[str]:
        if not self.held_out:
            return
        yield f"Rows that nothing was chosen by, {self.rows['held_out']} of them:"
        yield HEADER
        for name, trial in self.held_out.items():
            yield _line(trial, _said(name))
        for other, test in (("start", self.against_start), ("few-shot", self.against_few_shot)):
            if test is not None:
                yield f"chosen - {other}: {_difference(test)}"

    def _money(self) -> Iterator[str]:
        yield f"search: {self.requests:,} requests, {_usd(self.search_usd)}; paid here in all: {_usd(self.spent_usd)}"
        known = {name: usd for name, usd in self.projected_usd.items() if usd is not None}
        if known:
            each = ", ".join(f"{_said(name)} {_usd(usd)}" for name, usd in known.items())
            yield f"all {self.rows['recipe']:,} rows of the recipe would cost: {each}"


def _line(trial: Trial, name: str = "") -> str:
    facts, counts = trial.rationale_facts, (trial.prompt_tokens, trial.completion_tokens)
    words = "-" if facts is None else f"{facts['words']['mean']:.0f}"
    ease = "-" if facts is None or facts["flesch"] is None else f"{facts['flesch']:.0f}"
    rate = "-" if trial.explanation_rate is None else f"{trial.explanation_rate:.0%}"
    interval = f"[{trial.accuracy_low:.1%}, {trial.accuracy_high:.1%}]"
    tokens = "-" if None in counts else f"{counts[0]:,}+{counts[1]:,}"
    usd = "-" if trial.usd_per_label is None else f"{1000 * float(trial.usd_per_label):.3g}"
    numbers = f"{rate:>7} {sum(trial.unusable.values()):>8} {words:>5} {ease:>6} {tokens:>13} {usd:>9}"
    why = "" if trial.infeasible is None else f" ({trial.infeasible})"
    shown = name or f"{trial.name}: {_clip(trial.instruction)}{why}"
    return f"{trial.accuracy:>8.1%}  {interval:<16} {numbers}  {shown}"


def _said(name: str) -> str:
    return name.replace("_", "-")


def _difference(test: Mapping[str, Any]) -> str:
    found, alone = test["difference"], f"{test['only_a']} : {test['only_b']} rows"
    interval = f"[{found['low']:+.1%}, {found['high']:+.1%}]"
    return f"{found['value']:+.1%} {interval}, {alone}, p {test['p_value']:.2g} (McNemar exact)"


def _usd(usd: str | None) -> str:
    return "USD unknown" if usd is None else f"{float(usd):.3g} USD"


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
