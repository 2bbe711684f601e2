"""One answer of a system on a test row, and the prompts with which an untrained base gives its best. Loads no model."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgestill.runtime import decode
from edgestill.runtime.session import Session
from edgestill.runtime.task import Task, load_tokenizer
from edgestill.runtime.written import read_answer, write_answer

INSTRUCTION_TOKENS = 1024  # room for the instruction beside the longest text


@dataclass(frozen=True)
class Answer:
    """What a system says about a text.

    Of a task that generates `probabilities` is empty, `text` is all that was written, `confidence` its probability.
    """

    label: str
    probabilities: dict[str, float]
    text: str | None = None
    confidence: float | None = None


def labelled(chances: list[float], task: Task) -> Answer:
    """The answer that the probabilities of the task's L labels give."""
    return Answer(task.written(task.chosen(chances)), dict(zip(task.label_names, chances, strict=True)))


def by_writing(session: Session, tokenizer: Any, task: Task) -> Callable[[str], Answer]:
    """A student that writes its answers, as the device does."""

    def answer(text: str) -> Answer:
        session.forget()
        written = write_answer(session, tokenizer, task, text)
        return Answer(written.answer, {}, written.text, math.exp(written.logprob_nats))

    return answer


def base_prompts(student: Path, task: Task, session: Any) -> Iterator[tuple[str, Callable[[str], Answer]]]:
    """(name, system) for each prompt style.

    Labels are compared through the trie, end of sequence included; an answer of its own is written greedily.
    """
    tokenizer = load_tokenizer(student)
    tokenizer.encode_special_tokens = False  # the chat template's own markers must be read as such
    if task.is_written:
        shape, last = "Answer with the answer alone, without any explanation.", "\nAnswer:"
    elif task.choices is not None:
        shape, last = "Answer with the letter of one of the choices below the text.", "\nLetter:"
    else:
        listing = "\n".join(f"{label.name}: {label.description}".removesuffix(": ") for label in task.labels)
        shape, last = f"Answer with exactly one of these labels.\n{listing}", "\nLabel:"
    head = f"{task.instruction}\n{shape}\n\nText: "
    template = _chat_template(student)
    styles = {"plain": (head, last, " ")}
    if template is not None:
        before, after = template(head + "\0").split("\0")
        styles = {"chat": (before, after, ""), **styles}
    for name, (before, after, blank) in styles.items():
        if task.is_written:
            yield name, _greedy_writer(session, tokenizer, task, before, after)
        else:
            yield name, _trie_predictor(session, tokenizer, task, before, after, blank)


def _greedy_writer(session: Any, tokenizer: Any, task: Task, before: str, after: str) -> Callable[[str], Answer]:
    """The base's own answer: it owes no reason and no "Answer:" line, and after a line of its own it rambles."""
    room = task.max_text_tokens + INSTRUCTION_TOKENS
    plain = replace(task, chain=False, answer_suffix=after, max_text_tokens=room, too_long="cut_tail")

    def answer(text: str) -> Answer:
        written = write_answer(session, tokenizer, plain, before + text)
        said = written.text.split("\n")[0]
        return Answer(read_answer(said, plain), {}, written.text, math.exp(written.logprob_nats))

    return answer


def _trie_predictor(
    session: Any, tokenizer: Any, task: Task, before: str, after: str, blank: str
) -> Callable[[str], Answer]:
    def ids_of(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    bos = [] if task.bos_token_id is None else [task.bos_token_id]
    answers = [[*ids_of(blank + label.name), task.eos_token_id] for label in task.labels]

    def answer(text: str) -> Answer:
        prompt, asked = [*bos, *ids_of(before + text + after)], len(task.choices_in(text)) or len(answers)
        chances = [float(p) for p in decode.trie_probabilities(session, prompt, answers[:asked])]
        return labelled([*chances, *[0.0] * (len(answers) - asked)], task)

    return answer


def _chat_template(folder: Path) -> Callable[[str], str] | None:
    """A user's message rendered by the base's own chat template up to the assistant's turn; None without one."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    path = folder / "chat_template.jinja"
    if not path.exists():
        return None
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(path.read_text("utf-8"))
    return lambda text: template.render(messages=[{"role": "user", "content": text}], add_generation_prompt=True)
