"""What a recipe will ask and cost, before a token is paid for: rows, tokens, money, the exact prompt. Sends nothing."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from edgestill.distill.corrections import read_corrections
from edgestill.distill.dataset import Dataset, Row, load_dataset
from edgestill.distill.pipeline import Plan
from edgestill.distill.teacher.budget import Tokens, bound_of
from edgestill.distill.teacher.conversation import Needs, Resolved, resolve
from edgestill.distill.teacher.open import teacher_host
from edgestill.distill.teacher.prompt import Prompter
from edgestill.distill.teacher.store import cache_path, cached_answers, known_dialect

# Answers are assumed to be so long until some are known.
ASSUMED_LABEL_TOKENS = 12
ASSUMED_RATIONALE_TOKENS = 36
KNOWN_ENOUGH = 20


@dataclass(frozen=True)
class Estimate:
    """The plan of a recipe.

    `prompt_tokens` is counted with the student's tokenizer, which the teacher's may differ from by some tenths;
    `completion_tokens` comes from answers in the cache or from an assumption, as `basis` says. `usd` is the estimate,
    `usd_at_most` the sum of the worst cases that the cap reserves, both without repairs; None without a price.
    """

    rows: dict[str, int]
    removed: dict[str, int]
    too_long: int
    corrected: int
    known: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    basis: str
    usd: str | None
    usd_at_most: str | None
    caps: dict[str, str]
    prompt: list[dict[str, str]]
    teacher: str
    student: str
    artifacts: list[str]
    against: list[str]
    notes: list[str]

    @property
    def text(self) -> str:
        """The plan as people read it."""
        rows = ", ".join(f"{count} {split}" for split, count in self.rows.items())
        removed = ", ".join(f"{count} {reason}" for reason, count in self.removed.items()) or "none"
        money = (
            "unknown (no price in the recipe)" if self.usd is None else f"{self.usd} USD, at most {self.usd_at_most}"
        )
        caps = ", ".join(f"{value} {name}" for name, value in self.caps.items()) or "none"
        lines = [
            f"rows       {rows}; taken out: {removed}; too long: {self.too_long}; corrected: {self.corrected}",
            f"teacher    {self.teacher}",
            f"requests   {self.requests} to send, {self.known} rows are known",
            f"tokens     {self.prompt_tokens} in, {self.completion_tokens} out ({self.basis})",
            f"money      {money}; caps: {caps}",
            f"student    {self.student}",
            f"artifacts  {', '.join(self.artifacts)}; compared with {', '.join(self.against)}",
            *(f"note       {note}" for note in self.notes),
            "",
            "the first request:" if self.prompt else "nothing is sent: the answers are recorded",
        ]
        for message in self.prompt:
            lines += [f"[{message['role']}]", *(f"  {line}" for line in message["content"].splitlines())]
        return "\n".join(lines)


def estimate(plan: Plan) -> Estimate:
    """What `annotate` would ask with what is known now.

    Raises:
        EdgestillError: data, corrections or a teacher's file cannot be read.
    """
    recipe = plan.recipe
    data = load_dataset(recipe, plan.recipe_path)
    corrections = read_corrections(recipe, plan.recipe_path, data.rows)
    rows = [row for row in data.rows if row.id not in corrections and plan.fits(row.text)]
    too_long = sum(not plan.fits(row.text) for row in data.rows if row.id not in corrections)
    asked = _Asked() if recipe.teacher.kind == "replay" else _ask(plan, rows)
    price, tokens = recipe.teacher.price_usd_per_mtok, Tokens(asked.prompt_tokens, 0, asked.completion_tokens)
    usd, at_most = tokens.usd(price), asked.bound.usd(price)
    caps = {name: str(value) for name, value in recipe.budget.model_dump().items() if value is not None}
    return Estimate(
        rows=dict(Counter(row.split for row in data.rows)),
        removed=data.removed_by_reason,
        too_long=too_long,
        corrected=len(corrections),
        known=asked.known,
        requests=asked.requests,
        prompt_tokens=asked.prompt_tokens,
        completion_tokens=asked.completion_tokens,
        basis=asked.basis,
        usd=None if usd is None else f"{usd:.6f}",
        usd_at_most=None if at_most is None else f"{at_most:.6f}",
        caps=caps,
        prompt=asked.prompt,
        teacher=f"{recipe.teacher.kind}: {recipe.teacher.model or recipe.teacher.path}",
        student=f"{recipe.student.base}, LoRA rank {recipe.student.lora.r}, {recipe.train.objective}",
        artifacts=[f"{name} {recipe.export.quantization}" for name in recipe.export.artifacts],
        against=list(recipe.bench.against),
        notes=_notes(plan, data),
    )


@dataclass
class _Asked:
    known: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bound: Tokens = field(default_factory=Tokens)
    basis: str = "recorded answers: nothing is sent"
    prompt: list[dict[str, str]] = field(default_factory=list)


def _ask(plan: Plan, rows: list[Row]) -> _Asked:
    """What a live teacher would be asked; the cache is only read."""
    recipe, teacher = plan.recipe, plan.recipe.teacher
    host, model = teacher_host(recipe, plan.recipe_path), str(teacher.model or teacher.path)
    prompter = Prompter(recipe, host, model, known_dialect(cache_path(), recipe, host, model))
    lookup, found = cached_answers(cache_path()), _Asked()
    lengths: list[int] = []
    for row in rows:
        state = resolve(prompter, row.text, teacher.votes, False, lookup)
        if isinstance(state, Resolved):
            found.known += 1
            if state.tokens is not None:
                lengths.append(state.tokens.completion)
            continue
        _count(found, state, plan.tokenizer)
    assumed = ASSUMED_LABEL_TOKENS + ASSUMED_RATIONALE_TOKENS * recipe.task.rationale
    each = statistics.mean(lengths) if len(lengths) >= KNOWN_ENOUGH else assumed
    found.completion_tokens = round(each * found.requests)
    known = f"the mean of {len(lengths)} known answers" if len(lengths) >= KNOWN_ENOUGH else "an assumption"
    found.basis = f"in: by the student's tokenizer; out: {each:.0f} a request, {known}"
    found.prompt = list(prompter.first(rows[0].text).body["messages"]) if rows else []
    again = min(teacher.self_agreement_rows, len(rows))
    if again and found.requests:
        found.basis += f"; and {again} rows once more for self-agreement"
    return found


def _count(found: _Asked, state: Needs, tokenizer: Any) -> None:
    for request in state.requests:
        found.requests += 1
        found.bound += bound_of(request)
        messages = request.body["messages"]
        found.prompt_tokens += sum(len(tokenizer.encode(m["content"]).ids) + 4 for m in messages)


def _notes(plan: Plan, data: Dataset) -> list[str]:
    teacher, notes = plan.recipe.teacher, []
    if not teacher.license_note:
        notes.append("teacher.license_note is missing: may a model be trained on this teacher's answers?")
    if teacher.kind == "openai" and not plan.recipe.budget.model_dump(exclude_none=True):
        notes.append("no cap in budget: set usd, tokens or requests")
    if data.redacted:
        notes.append(f"teacher.redact hid {data.redacted} places")
    return notes
