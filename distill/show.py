"""What became of single rows, for people: rejections, and all that is known about one. Reads an annotations folder."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.annotate import MANIFEST_NAME, read_annotations
from edgestill.distill.dataset import Row
from edgestill.distill.ledger import Answer, Ledger, row_usd
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError


@dataclass(frozen=True)
class Rejects:
    """Some of the rejected rows, and how many there are of each reason."""

    rejected: dict[str, int]
    rows: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """A row in two lines: where and why, what was asked and said."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items()) or "nothing rejected"
        lines = [counts]
        for row in self.rows:
            lines.append(f"{row['id']}  {row['split']:<5}  {row['reason']}: {row['detail']}")
            said = f"  said: {_clip(row['raw'])}" if row["raw"] else ""
            lines.append(f"    {_clip(row['text'])}{said}")
        return "\n".join(lines)


def rejected_rows(folder: Path, reason: str | None, limit: int) -> Rejects:
    """The first `limit` rejected rows of a run, of one reason if it is named.

    Raises:
        EdgestillError: no annotations there, or no row was rejected for that reason.
    """
    ledger = manifest.load(Ledger, folder / MANIFEST_NAME)
    if reason is not None and reason not in ledger.rejected:
        raise EdgestillError(f"no row was rejected as {reason!r}; reasons here: {', '.join(ledger.rejected) or 'none'}")
    found = (
        _facts(row, answer, ledger)
        for row, answer in read_annotations(folder)
        if isinstance(answer, Rejection) and reason in (None, answer.reason)
    )
    return Rejects(ledger.rejected, list(itertools.islice(found, limit)))


def one_row(folder: Path, row_id: str) -> dict[str, Any]:
    """All that is known about the row with this id, or the only one whose id begins so.

    Raises:
        EdgestillError: no annotations there, no such row, or several.
    """
    ledger = manifest.load(Ledger, folder / MANIFEST_NAME)
    found = [(row, answer) for row, answer in read_annotations(folder) if row.id.startswith(row_id)]
    exact = [pair for pair in found if pair[0].id == row_id]
    found = exact or found
    if len(found) != 1:
        some = ", ".join(row.id for row, _ in found[:5])
        raise EdgestillError(f"{len(found)} rows of {folder} have an id that begins with {row_id!r}: {some or 'none'}")
    return _facts(*found[0], ledger)


def _facts(row: Row, answer: Answer, ledger: Ledger) -> dict[str, Any]:
    usd = row_usd(ledger.price_usd_per_mtok, answer)
    facts: dict[str, Any] = {"id": row.id, "split": row.split, "text": row.text, "gold": row.gold}
    facts["status"] = "pending" if answer is None else "accepted" if isinstance(answer, Annotation) else "rejected"
    if isinstance(answer, Annotation):
        facts |= {"label": answer.label, "rationale": answer.rationale, "probabilities": _likeliest(answer)}
        facts |= {"corrected": answer.corrected, "agrees": answer.agrees, "latency_ms": answer.latency_ms}
    if isinstance(answer, Rejection):
        facts |= {"reason": answer.reason, "detail": answer.detail}
    if answer is not None:
        facts |= {"raw": answer.raw, "requests": answer.requests, "bought_here": answer.bought_here}
        facts |= {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        facts["usd"] = None if usd is None else f"{usd:f}"
    return facts


def _likeliest(answer: Annotation) -> dict[str, float] | None:
    if answer.probabilities is None:
        return None
    best = sorted(answer.probabilities.items(), key=lambda item: -item[1])[:5]
    return {label: round(share, 4) for label, share in best}


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:99] + "…"
