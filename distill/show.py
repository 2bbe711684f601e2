"""What became of single rows, for people: rejections, and all that is known about one. Reads an annotations folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.annotate import MANIFEST_NAME, read_annotations, status_of
from edgestill.distill.dataset import Row
from edgestill.distill.ledger import Answer, Ledger, row_usd
from edgestill.distill.teacher.budget import usd_text
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

CLIPPED = 100


@dataclass(frozen=True)
class Rejects:
    """Some of the rejected rows, and how many there are of each reason."""

    rejected: dict[str, int]
    rows: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """A row in a few lines: where and why, what was asked, what was said, what it cost."""
        counts = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items())
        total = sum(self.rejected.values())
        lines = [f"{total:,} rejected: {counts}; {len(self.rows):,} shown" if total else "nothing is rejected"]
        for row in self.rows:
            lines += ["", f"{row['id']}  {row['split']}  {row['reason']}: {_clip(row['detail'])}"]
            lines.append(f"  text  {_clip(row['text'])}")
            lines += [f"  said  {_clip(row['raw'])}"] if row["raw"] else []
            lines += [f"  cost  {_cost(row)}"] if row["requests"] or row["prompt_tokens"] != 0 else []
        return "\n".join(lines)


@dataclass(frozen=True)
class OneRow:
    """All that is known about a row; which facts there are depends on what became of it."""

    facts: dict[str, Any]

    @property
    def text(self) -> str:
        """A fact a line; the lines of a longer text stand under each other."""
        lines = []
        for key, value in self.facts.items():
            said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if value is None:
                said = "unknown" if key in ("usd", "prompt_tokens", "completion_tokens") else "none"
            first, *more = said.split("\n")
            lines += [f"{key:<17}  {first}".rstrip(), *(f"{'':<17}  {line}".rstrip() for line in more)]
        return "\n".join(lines)


def rejected_rows(folder: Path, reason: str | None, limit: int) -> Rejects:
    """The first `limit` rejected rows of a run, of one reason if it is named.

    Raises:
        EdgestillError: no annotations there, or no row was rejected for that reason.
    """
    ledger = manifest.load(Ledger, folder / MANIFEST_NAME)
    if reason is not None and reason not in ledger.rejected:
        raise EdgestillError(f"no row was rejected as {reason!r}; reasons here: {', '.join(ledger.rejected) or 'none'}")
    found = list[dict[str, Any]]()
    for row, answer in read_annotations(folder):
        if len(found) == limit:
            break
        if isinstance(answer, Rejection) and reason in (None, answer.reason):
            found.append(_facts(row, answer, ledger))
    return Rejects(ledger.rejected, found)


def one_row(folder: Path, row_id: str) -> OneRow:
    """All that is known about the row with this id, or the only one whose id begins so.

    Raises:
        EdgestillError: no annotations there, no such row, or several.
    """
    ledger = manifest.load(Ledger, folder / MANIFEST_NAME)
    ids, found = list[str](), list[tuple[Row, Answer]]()
    for row, answer in read_annotations(folder):
        if row.id.startswith(row_id):
            ids.append(row.id)
            found = [(row, answer)]
            if row.id == row_id:
                break
    if not found or (len(ids) > 1 and found[0][0].id != row_id):
        some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise EdgestillError(
            f"{len(ids)} rows of {folder} have an id that begins with {row_id!r}" + (f": {some}" if ids else ""),
            "ids stand in annotations.jsonl and in edgestill rejects",
        )
    return OneRow(_facts(*found[0], ledger))


def _facts(row: Row, answer: Answer, ledger: Ledger) -> dict[str, Any]:
    usd = row_usd(ledger.price_usd_per_mtok, answer)
    facts: dict[str, Any] = {"id": row.id, "split": row.split, "text": row.text, "gold": row.gold}
    facts["status"] = status_of(answer)
    if isinstance(answer, Annotation):
        facts |= {"label": answer.label, "rationale": answer.rationale, "probabilities": _likeliest(answer)}
        facts |= {"corrected": answer.corrected, "agrees": answer.agrees, "latency_ms": answer.latency_ms}
    if isinstance(answer, Rejection):
        facts |= {"reason": answer.reason, "detail": answer.detail}
    if isinstance(answer, Annotation | Rejection):
        facts |= {"raw": answer.raw, "requests": answer.requests, "bought_here": answer.bought_here}
        facts |= {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        facts["usd"] = None if usd is None else usd_text(usd)
    return facts


def _likeliest(answer: Annotation) -> dict[str, float] | None:
    if answer.probabilities is None:
        return None
    best = sorted(answer.probabilities.items(), key=lambda item: -item[1])[:5]
    return {label: round(share, 4) for label, share in best}


def _cost(row: dict[str, Any]) -> str:
    tokens, count = (row["prompt_tokens"], row["completion_tokens"]), row["requests"]
    words = "unknown tokens" if None in tokens else f"{tokens[0]:,} + {tokens[1]:,} tokens"
    money = "USD unknown" if row["usd"] is None else f"{row['usd']} USD"
    sent = f"{count} request{'s' if count > 1 else ''}, " if count else ""
    return f"{sent}{words}, {money}"


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CLIPPED else line[: CLIPPED - 1] + "…"
