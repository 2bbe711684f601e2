"""What a teacher is: something that is asked about rows and then tells, for each, an answer or why there is none."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from edgestill.distill.dataset import Row
from edgestill.runtime.errors import EdgestillError

Told = Callable[[int], None]


@dataclass(frozen=True)
class Annotation:
    """One accepted answer.

    `probabilities` is over the recipe's labels and sums to 1, or None when the teacher gives none. `latency_ms` is the
    wait for it and its repairs when it was bought, None for recorded answers. `raw` is the answer as it came;
    `requests` is how many it took, repairs and votes included. Tokens are the answer's and its repairs'; those of
    votes and of a second asking are apart. `corrected` marks a label by hand.
    """

    row_id: str
    label: str
    probabilities: dict[str, float] | None
    rationale: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_ms: float | None
    raw: str
    cached_tokens: int | None = None
    extra_prompt_tokens: int | None = 0
    extra_completion_tokens: int | None = 0
    requests: int = 0
    bought_here: int = 0
    agrees: bool | None = None
    corrected: bool = False


@dataclass(frozen=True)
class Rejection:
    """One row that got no usable answer, and why; never a default label. It may have cost tokens all the same."""

    row_id: str
    reason: str
    detail: str
    raw: str
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cached_tokens: int | None = None
    requests: int = 0
    bought_here: int = 0


@dataclass(frozen=True)
class Spending:
    """What a run has sent and paid so far; None is unknown."""

    requests: int
    usd: str | None
    usd_by_split: dict[str, str] | None
    worst_case: int


class Teacher(Protocol):
    """Is asked about all rows first, durably; then tells what it said, row by row, from what is stored.

    `fingerprint` changes whenever the answers may; it is part of what finished annotations depend on.
    """

    name: str
    fingerprint: str

    def ask(self, rows: Iterable[Row], told: Told) -> EdgestillError | None:
        """Get an answer for every row as far as caps allow; the reason why it stopped before the end, if it did."""
        ...

    def answer(self, row: Row) -> Annotation | Rejection | None:
        """The teacher's answer for one row; None while it is pending."""
        ...

    def spending(self) -> Spending:
        """What this run has paid."""
        ...

    def spent_so_far(self) -> str:
        """What this run has paid, in a few words for a progress bar; cheap."""
        ...

    def close(self) -> None:
        """Let go of files and models."""
        ...
