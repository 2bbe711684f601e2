"""Gate: what a student writes on the device is what torch writes, and where they part torch was not sure.

The counterpart of `answers` for tasks that generate, with the same figures and limits. Torch writes each answer once,
greedily, as the device does.
"""

from collections.abc import Sequence
from math import exp
from typing import Any

import numpy as np

from edgestill.export.build import Logits
from edgestill.export.gates.answers import Answers, accuracy_lost
from edgestill.export.gates.endings import TorchSession
from edgestill.export.gates.reference import Reference, kl_nats
from edgestill.export.gates.twin import TWIN_ROWS
from edgestill.runtime.decode import constant_prefix, label_probabilities
from edgestill.runtime.session import Session
from edgestill.runtime.task import Task
from edgestill.runtime.written import Written, write_answer

WRITTEN_ROWS = 100  # torch in float32 takes as long for a row as for all labels of many
FORCED_TOKENS = 3  # positions of torch's own answer that twins are compared at, beside the first


def written_references(logits: Logits, task: Task, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> list[Reference]:
    """Torch's greedy answers on rows of `dev.jsonl`: text, and label where the run keeps the teacher's answer."""
    found = []
    for number, row in enumerate(rows[:WRITTEN_ROWS]):
        ids = tuple(task.encode(tokenizer, row["text"]))
        first = np.array(logits(list(ids)), np.float32)
        session = TorchSession(logits, {ids: first}, len(ids) + task.max_answer_tokens)
        written = write_answer(session, tokenizer, task, row["text"])
        forced = min(FORCED_TOKENS, written.tokens) if number < TWIN_ROWS else 0
        later = [np.array(logits([*ids, *written.ids[: place + 1]]), np.float32) for place in range(forced)]
        none = np.zeros(0)
        teacher = row.get("label")
        found.append(Reference(row["text"], ids, first, none, written.answer, teacher, written, tuple(later)))
    return found


def measure_written(session: Session, rows: Sequence[Reference], task: Task, tokenizer: Any, logits: Logits) -> Answers:
    """One engine on the rows, each afresh as `Student.predict` does it.

    The KL is that of the first position. The margin of a changed answer is torch's at the token where both part.

    Args:
        session: the engine.
        rows: torch's answers.
        task: what is asked.
        tokenizer: the bundle's own.
        logits: torch's.
    """
    kls, worst, margin, said = [], 0.0, 0.0, []
    session.pin(constant_prefix(task, tokenizer))
    for row in rows:
        assert row.written is not None
        session.forget()
        kls.append(kl_nats(row.logits, session.logits(row.ids), task))
        session.forget()
        found = write_answer(session, tokenizer, task, row.text)
        if found.text == row.written.text:
            worst = max(worst, abs(exp(found.logprob_nats) - exp(row.written.logprob_nats)))
        if found.answer != row.label:
            margin = max(margin, _margin_at_parting(row, found, task, logits))
        said.append(found.answer)
    kept = sum(answer == row.label for answer, row in zip(said, rows, strict=True))
    lost = accuracy_lost(said, rows)
    return Answers(len(rows), kept / len(rows), sum(kls) / len(rows), worst, margin, lost)


def _margin_at_parting(row: Reference, found: Written, task: Task, logits: Logits) -> float:
    """Probability that torch gave its own token over the engine's, at the first token in which they differ."""
    assert row.written is not None
    ours, theirs = ((*each.ids, task.eos_token_id) for each in (row.written, found))
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if place is None:  # one is cut where the other goes on: the end is what they differ in
        return 0.0
    p = label_probabilities(np.asarray(logits([*row.ids, *row.written.ids[:place]])), [ours[place], theirs[place]])
    return float(p[0] - p[1])
