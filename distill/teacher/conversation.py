"""What a row still needs from the teacher: a pure function of the stored responses.

Online, batch and the final count all call `resolve`, so a killed run, a second run and another mode see the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgestill.distill.teacher.budget import Tokens, used_tokens
from edgestill.distill.teacher.confidence import label_probabilities, vote_shares
from edgestill.distill.teacher.parse import Reading, read_response
from edgestill.distill.teacher.prompt import Prompter, Request

Lookup = Callable[[str], dict[str, Any] | None]

CUT_OFF = ("truncated", "reasoning_used_budget")
MENDABLE = ("unparsable", "label_not_allowed")


@dataclass(frozen=True)
class Step:
    """One request of a row and the response that is stored for it."""

    request: Request
    response: dict[str, Any]


@dataclass(frozen=True)
class Resolved:
    """All that the teacher said about a row.

    `reading` is of the last answer; `probabilities` come from its tokens or from votes; `agrees` tells whether a
    second, equal request got the same label, None where none was made.
    """

    reading: Reading
    steps: tuple[Step, ...]
    extra: tuple[Step, ...] = ()
    probabilities: dict[str, float] | None = None
    agrees: bool | None = None

    @property
    def raw(self) -> str:
        """The last answer as it came."""
        response = self.steps[-1].response
        return str(response.get("content") or response.get("refusal") or "")

    @property
    def tokens(self) -> Tokens | None:
        """Tokens of the answer and its repairs, without votes; None when the endpoint told none."""
        return _sum(self.steps)

    @property
    def extra_tokens(self) -> Tokens | None:
        """Tokens of votes and of the second asking."""
        return _sum(self.extra)


@dataclass(frozen=True)
class Needs:
    """Requests that have no stored response yet; all of them may be sent at once."""

    requests: list[Request] = field(default_factory=list)


def resolve(prompter: Prompter, text: str, votes: int, twice: bool, lookup: Lookup) -> Resolved | Needs:
    """What is known about a row, or what must be asked next.

    An answer that was cut off is asked for once more with more room; one that cannot be read gets one repair. Then
    the row is rejected: there is no default label.

    Args:
        prompter: builds the requests.
        text: of the row.
        votes: how many samples to take where the endpoint gives no log-probabilities; 0 for none.
        twice: whether the row belongs to the subset that is asked again.
        lookup: the stored response for a request's key.
    """
    steps: list[Step] = []
    request = prompter.first(text)
    while True:
        response = lookup(request.key)
        if response is None:
            return Needs([request])
        steps.append(Step(request, response))
        reading = read_response(response, lambda content: prompter.form.read(content, text))
        asked = {step.request.purpose for step in steps}
        if reading.reason in CUT_OFF and "longer" not in asked:
            request = prompter.longer(request)
        elif reading.reason in MENDABLE and "repair" not in asked:
            request = prompter.repair(request, response.get("content") or "", reading.detail, text)
        else:
            break
    if reading.label is None:
        return Resolved(reading, tuple(steps))
    return _with_confidence(prompter, text, votes, twice, lookup, Resolved(reading, tuple(steps)))


def _with_confidence(
    prompter: Prompter, text: str, votes: int, twice: bool, lookup: Lookup, found: Resolved
) -> Resolved | Needs:
    label, form, response = str(found.reading.label), prompter.form, found.steps[-1].response
    labels, odds = form.options(text), response.get("label_probabilities")
    if odds is None and response.get("logprobs") and form.tells_odds:
        odds = label_probabilities(response["logprobs"], label, labels)
    wanted = [prompter.vote(text, number) for number in range(1, votes + 1)] if odds is None else []
    wanted += [prompter.again(text)] if twice else []
    extra = [(request, lookup(request.key)) for request in wanted]
    if missing := [request for request, known in extra if known is None]:
        return Needs(missing)
    steps = tuple(Step(request, known) for request, known in extra if known is not None)
    said = [(s.request.purpose, read_response(s.response, lambda c: form.read(c, text)).label) for s in steps]
    voted = [name for purpose, name in said if purpose == "vote" and name is not None]
    second = [name for purpose, name in said if purpose == "agreement"]
    shares = odds if odds is not None else vote_shares(voted, labels)
    return Resolved(
        found.reading,
        found.steps,
        steps,
        None if shares is None else {name: shares.get(name, 0.0) for name in form.labels},
        second[0] == label if second else None,
    )


def _sum(steps: tuple[Step, ...]) -> Tokens | None:
    total = Tokens()
    for step in steps:
        used = Tokens() if "error" in step.response else used_tokens(step.response.get("usage"))
        if used is None:
            return None
        total += used
    return total
