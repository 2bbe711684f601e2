"""One answer: what `Student.predict` gives back, made of the labels' probabilities or of what was written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from edgestill.runtime.confidence import confidence
from edgestill.runtime.decode import Probabilities, task_probabilities
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.session import Session
from edgestill.runtime.task import Task
from edgestill.runtime.written import write_answer


@dataclass(frozen=True)
class Prediction:
    """One answer.

    `label` is the answer as one text: a label, or of a multilabel task the set as `label_sets` writes it, such as
    "lights | music" or "(none)"; `labels` are its names. `probabilities` are by label: of one answer they sum to 1 over
    the labels asked about, of a set each is that label's own, whatever the others are. `latency_ms` is wall time from
    text in to answer out, tokenization included; in `predict_many` that of the rows read together, over their number.

    `confidence` is the calibrated probability that the answer is the teacher's, who judged the rows that it was fitted
    to; of a set that of its least certain label (see `confidence.confidence`). Where the bundle ships no calibration,
    and for other labels than the task's, it is the plain probability. `abstained` says that it is below what the caller
    wanted; the answer is given all the same.

    Of a task that generates, `label` is the canonical answer, "" where none was found, `text` all that was written,
    `tokens_written` its length, and `confidence` the probability of these tokens and of their end in a row; there are
    no `probabilities`. Of a task with choices `label` is a letter and `choice` the text of that choice. Both are None
    for other tasks.
    """

    label: str
    labels: tuple[str, ...]
    probabilities: dict[str, float]
    latency_ms: float
    prompt_tokens: int
    confidence: float
    abstained: bool = False
    text: str | None = None
    tokens_written: int | None = None
    choice: str | None = None


@dataclass(frozen=True)
class Asked:
    """One filled `text` and the token ids of its prompt."""

    text: str
    ids: list[int]


def answer(session: Session, task: Task, tokenizer: Any, asked: Asked, temperature: float) -> Prediction:
    """What a session answers to one text; the caller adds latency.

    Args:
        session: in the state that the caller wants; the task's answers are places in its logits.
        task: what is asked.
        tokenizer: the task's.
        asked: the text.
        temperature: of the confidence; what is written has none.
    """
    if not task.is_written:
        return of_task(task_probabilities(session.logits(asked.ids), task, asked.text), task, asked, temperature)
    found = write_answer(session, tokenizer, task, asked.text)
    sure, ids = exp(found.logprob_nats), len(asked.ids)
    return Prediction(found.answer, (found.answer,), {}, 0.0, ids, sure, text=found.text, tokens_written=found.tokens)


def answers(
    session: Session, task: Task, tokenizer: Any, rows: Sequence[Asked], temperature: float
) -> Iterator[Prediction]:
    """`answer` for each of one row or more, each afresh; what is written is written one row after the other."""
    if task.is_written:
        for row in rows:
            session.forget()
            yield answer(session, task, tokenizer, row, temperature)
        return
    for row, logits in zip(rows, session.logits_many([row.ids for row in rows]), strict=True):
        yield of_task(task_probabilities(logits, task, row.text), task, row, temperature)


def of_task(chances: Probabilities, task: Task, asked: Asked, temperature: float) -> Prediction:
    """The answer that the (L,) probabilities of the task's labels give; the caller adds latency."""
    chosen = task.chosen(chances.tolist())
    places = [task.label_names.index(name) for name in chosen]
    sure = confidence(chances, places, task.is_multilabel, temperature)
    choice = task.choices_in(asked.text)[places[0]] if task.choices is not None else None
    by_label, tokens = _by_label(task.label_names, chances), len(asked.ids)
    return Prediction(task.written(chosen), chosen, by_label, 0.0, tokens, sure, choice=choice)


def of_labels(chances: Probabilities, names: Sequence[str], asked: Asked) -> Prediction:
    """The likeliest of the caller's own labels, for which no temperature was fitted."""
    best = int(chances.argmax())
    sure, tokens = float(chances[best]), len(asked.ids)
    return Prediction(names[best], (names[best],), _by_label(names, chances), 0.0, tokens, sure)


def _by_label(names: Sequence[str], chances: Probabilities) -> dict[str, float]:
    return dict(zip(names, chances.tolist(), strict=True))


def checked_threshold(abstain_below: float | None) -> float:
    """The confidence wanted; 0, which every answer reaches, for None.

    Raises:
        UsageError: no probability.
    """
    if abstain_below is None:
        return 0.0
    if not 0 <= abstain_below <= 1:
        raise UsageError(f"abstain_below is {abstain_below}, wanted a probability from 0 to 1", "such as 0.8")
    return abstain_below


def checked_labels(labels: Sequence[str]) -> Sequence[str]:
    """The caller's own labels.

    Raises:
        UsageError: one text, whose letters would be the labels.
        EdgestillError: none, an empty one, or one twice.
    """
    if isinstance(labels, str):
        raise UsageError(f"labels is the text {labels!r}, wanted a list", f"type: labels=[{labels!r}]")
    if not labels or len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
        raise EdgestillError(f"labels {list(labels)!r}: wanted at least one, all different, none empty")
    return labels
