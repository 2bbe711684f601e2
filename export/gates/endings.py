"""Gate: what torch ends, the device ends: greedy answers stop at the end-of-sequence token within a label's length."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgestill.export.build import Logits
from edgestill.export.gates.answers import flips_allowed
from edgestill.export.gates.gate import Gate, at_most
from edgestill.export.gates.reference import Reference
from edgestill.runtime import decode
from edgestill.runtime.session import Logits as Row
from edgestill.runtime.session import Session
from edgestill.runtime.task import Task


class TorchSession(Session):
    """Torch as a session: every call computes the whole prompt, but for prompts whose logits are `known`."""

    reuses_prefix = False

    def __init__(self, logits: Logits, known: Mapping[tuple[int, ...], Row], max_tokens: int) -> None:
        super().__init__(max_tokens)
        self._logits, self._known = logits, known

    def _continue(self, kept: int, ids: list[int]) -> Row:
        assert kept == 0
        found = self._known.get(tuple(ids))
        return self._logits(ids) if found is None else found


def longest_answer(task: Task, tokenizer: Any) -> int:
    """Tokens of the longest answer, the end-of-sequence token left out."""
    if task.is_written:
        return task.max_answer_tokens
    return max(len(tokenizer.encode(label.completion, add_special_tokens=False).ids) for label in task.labels)


def ends(session: Session, row: Reference, task: Task, longest: int) -> bool:
    """Whether the greedy answer to a row ends within the longest answer and its end-of-sequence token."""
    session.forget()
    written = list(decode.greedy(session, row.ids, [task.eos_token_id], longest + 1))
    return len(written) <= longest


def ending_gate(
    engine: str, session: Session, ended: Sequence[bool], rows: Sequence[Reference], task: Task, longest: int
) -> Gate:
    """Rows that torch has `ended` and the engine has not; of written answers, no more than may change at all."""
    asked = [row for row, done in zip(rows, ended, strict=True) if done]
    open_ended = sum(not ends(session, row, task, longest) for row in asked)
    allowed = flips_allowed(len(asked)) if task.is_written else 0
    name, unit = f"{engine}: answers without end", f"of {len(asked)} that torch ends, {len(rows)} asked"
    return at_most(name, open_ended, allowed, unit)
