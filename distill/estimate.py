"""What a recipe will ask and cost, before a token is paid for: rows, tokens, money, the exact prompt. Sends nothing."""

import functools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from edgestill.distill.corrections import read_corrections
from edgestill.distill.dataset import Dataset, Row, load_dataset
from edgestill.distill.plan import Plan, StudentPlan
from edgestill.distill.recipe import Recipe
from edgestill.distill.recipe import resolve as resolve_path
from edgestill.distill.teacher.budget import Tokens, bound_of, usd_text
from edgestill.distill.teacher.conversation import Lookup, Needs, Resolved, resolve
from edgestill.distill.teacher.live import asked_twice
from edgestill.distill.teacher.open import teacher_host
from edgestill.distill.teacher.prompt import Prompter, Request, first_dialect
from edgestill.distill.teacher.protocol import Annotation
from edgestill.distill.teacher.replay import ReplayTeacher
from edgestill.distill.teacher.store import cache_path, cached_answers, known_dialects

# Answers are assumed to be so long until some are known.
ASSUMED_LABEL_TOKENS = 12
ASSUMED_RATIONALE_TOKENS = 36
KNOWN_ENOUGH = 20
TEMPLATE_TOKENS = 4  # what a chat template adds to a message, about
RECORDED = "recorded answers: nothing is sent"


@dataclass(frozen=True)
class Estimate:
    """The plan of a recipe.

    `known` rows have their answer already, in the cache or in the file of a replay teacher. `requests` counts votes
    and second askings, not repairs. `prompt_tokens` is counted with the student's tokenizer, which the teacher's may
    differ from by some tenths; `completion_tokens` comes from known answers or from an assumption, as `basis` says.
    `usd` is the estimate, `usd_at_most` the sum of the worst cases that the cap reserves, with every vote that may be
    needed; both without repairs, as exact decimal text, None without a price.
    """

    rows: dict[str, int]
    removed: dict[str, int]
    too_long: int
    corrected: int
    not_selected: int
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
        caps = [f"{value} {'USD' if name == 'usd' else name}" for name, value in self.caps.items()]
        lines = [
            f"rows       {_listed(self.rows)}",
            f"not asked  {_listed(self.removed | self._kept_back)}",
            f"teacher    {self.teacher}",
            *self._asking(),
            f"caps       {', '.join(caps) or 'none'}",
            f"student    {self.student}",
            f"builds     {', '.join(self.artifacts)}; compared with {', '.join(self.against)}",
            *(f"note       {note}" for note in self.notes),
        ]
        if self.prompt:
            lines += ["", "The first request:"]
        for message in self.prompt:
            lines += [f"  [{message['role']}]", *(f"  {line}".rstrip() for line in message["content"].split("\n"))]
        return "\n".join(lines)

    @property
    def _kept_back(self) -> dict[str, int]:
        return {"too long": self.too_long, "corrected by hand": self.corrected, "not selected": self.not_selected}

    def _asking(self) -> list[str]:
        if self.basis == RECORDED:
            return [f"requests   none: nothing is sent, {self.known} rows have a recorded answer"]
        if not self.requests:
            return [f"requests   none to send: {self.known:,} rows are known and cost nothing"]
        money = "unknown (no price in the recipe)"
        if self.usd is not None and self.usd_at_most is not None:
            money = f"about {_money(self.usd)} USD, at most {_money(self.usd_at_most)} without repairs"
        return [
            f"requests   {self.requests:,} to send; {self.known:,} rows are known and cost nothing",
            f"tokens     about {self.prompt_tokens:,} in, {self.completion_tokens:,} out ({self.basis})",
            f"money      {money}",
        ]


def estimate(plan: Plan) -> Estimate:
    """What `annotate` would ask with what is known now.

    Raises:
        EdgestillError: data, corrections or a teacher's file cannot be read.
    """
    recipe = plan.recipe
    data = load_dataset(recipe, plan.recipe_path)
    corrections = read_corrections(recipe, plan.recipe_path, data.rows)
    fitting = [row for row in data.rows if plan.fits(row.text)]
    open_rows = [row for row in fitting if row.id not in corrections]
    rows = _likely(recipe, open_rows)
    asked = _recorded(plan, rows) if recipe.teacher.kind == "replay" else _ask(plan, data, rows)
    return Estimate(
        rows=dict(Counter(row.split for row in data.rows)),
        removed=data.removed_by_reason,
        too_long=len(data.rows) - len(fitting),
        corrected=len(fitting) - len(open_rows),
        not_selected=len(open_rows) - len(rows),
        known=asked.known,
        requests=asked.requests,
        prompt_tokens=asked.tokens.prompt,
        completion_tokens=asked.tokens.completion,
        basis=asked.basis,
        usd=None if asked.usd is None else usd_text(asked.usd),
        usd_at_most=None if asked.usd_at_most is None else usd_text(asked.usd_at_most),
        caps={name: str(value) for name, value in recipe.budget.model_dump(exclude_none=True).items()},
        prompt=asked.prompt,
        teacher=_teacher(plan),
        student="; ".join(map(_student, plan.students)),
        artifacts=[f"{name} {recipe.export.quantization}" for name in recipe.export.artifacts],
        against=list(recipe.bench.against),
        notes=[*_notes(recipe, data), *asked.notes, *_caps_in_the_way(recipe, asked)],
    )


def _likely(recipe: Recipe, rows: Sequence[Row]) -> list[Row]:
    """Without as many training rows as the strategy leaves out: which ones, it finds out on the way."""
    pool = [row for row in rows if row.split == "train"]
    likely = {row.id for row in recipe.select.likely(pool, len(recipe.task.labels))}
    return [row for row in rows if row.split != "train" or row.id in likely]


def _student(plan: StudentPlan) -> str:
    section = plan.recipe.the_student
    tuned = "all weights but word vectors" if section.full_tuning else f"LoRA rank {section.lora.r}"
    cut = f" cut to {section.layers} layers" if section.layers else ""
    learns = "label+rationale" if plan.recipe.learns_rationale else "label"
    if plan.recipe.learns_rationale and (share := plan.recipe.train.rationale_coverage) < 1:
        learns += f" ({share:.0%} of the reasons)"
    return f"{section.base}{cut}, {section.kind}, {tuned}, {learns}"


@dataclass
class _Asked:
    known: int = 0
    requests: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    basis: str = RECORDED
    usd: Decimal | None = Decimal(0)
    usd_at_most: Decimal | None = Decimal(0)
    prompt: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Sum:
    """Requests, their prompt tokens, and what they may take at most."""

    requests: int = 0
    prompt_tokens: int = 0
    bound: Tokens = field(default_factory=Tokens)

    def add(self, request: Request, count: Any) -> None:
        self.requests += 1
        self.prompt_tokens += sum(count(message["content"]) for message in request.body["messages"])
        self.bound += bound_of(request)


def _recorded(plan: Plan, rows: Sequence[Row]) -> _Asked:
    path = Path(resolve_path(plan.recipe_path, str(plan.recipe.teacher.path)))
    replay = ReplayTeacher(path, plan.recipe)
    answers = [replay.answer(row) for row in rows]
    known = sum(isinstance(answer, Annotation) or answer.reason != "not_recorded" for answer in answers)
    unusable = known - sum(isinstance(answer, Annotation) for answer in answers)
    notes = [f"{len(rows) - known} rows have no recorded answer and will be rejected"] if known < len(rows) else []
    notes += [f"{unusable} recorded answers cannot be used and will be rejected"] if unusable else []
    return _Asked(known=known, notes=notes)


def _ask(plan: Plan, data: Dataset, rows: Sequence[Row]) -> _Asked:
    """What a live teacher would be asked; the cache is only read."""
    recipe, teacher = plan.recipe, plan.recipe.teacher
    host, model = teacher_host(recipe, plan.recipe_path), str(teacher.model or teacher.path)
    dialects = known_dialects(cache_path(), recipe, host, model) or [first_dialect(recipe)]
    prompters = [Prompter(recipe, host, model, dialect) for dialect in dialects]
    prompter, lookup = prompters[-1], cached_answers(cache_path())
    twice = asked_twice(data.rows, teacher.self_agreement_rows)
    count = functools.lru_cache(64)(  # the instruction is the same in every request
        lambda text: len(plan.students[0].tokenizer.encode(text, add_special_tokens=False).ids) + TEMPLATE_TOKENS
    )
    sure, votes, lengths, known = _Sum(), _Sum(), list[int](), 0
    voting = teacher.kind == "openai" and not prompter.dialect.logprobs
    for row in rows:
        state = _state(prompters, row.text, teacher.votes, row.id in twice, lookup)
        if isinstance(state, Resolved):
            known += 1
            lengths += [state.tokens.completion] if state.tokens is not None else []
            voting = voting or any(step.request.purpose == "vote" for step in state.extra)
            continue
        voting = voting or any(request.purpose == "vote" for request in state.requests)
        for request in state.requests:
            sure.add(request, count)
        if state.requests[0].purpose not in ("vote", "agreement"):  # its label is not known yet
            if row.id in twice:
                sure.add(prompter.again(row.text), count)
            for number in range(teacher.votes if teacher.kind == "openai" else 0):
                votes.add(prompter.vote(row.text, number + 1), count)
    prompt = list(prompter.first(rows[0].text).body["messages"]) if rows else []
    return _priced(recipe, _Asked(known=known, prompt=prompt), sure, votes, voting, lengths)


def _state(prompters: Sequence[Prompter], text: str, votes: int, twice: bool, lookup: Lookup) -> Resolved | Needs:
    """What is known about a row in any dialect that the endpoint was spoken to in, or what to ask in the last one."""
    states = (resolve(prompter, text, votes, twice, lookup) for prompter in reversed(prompters))
    last = next(states)
    return last if isinstance(last, Resolved) else next((s for s in states if isinstance(s, Resolved)), last)


def _priced(recipe: Recipe, asked: _Asked, sure: _Sum, votes: _Sum, voting: bool, lengths: Sequence[int]) -> _Asked:
    """`asked` with the sums; votes are part of the estimate where the endpoint is known to give no probabilities."""
    asked.requests = sure.requests + votes.requests * voting
    each, words = ASSUMED_LABEL_TOKENS + ASSUMED_RATIONALE_TOKENS * recipe.task.rationale, "assumed"
    if len(lengths) >= KNOWN_ENOUGH:
        each, words = round(statistics.mean(lengths)), f"as in {len(lengths):,} known answers"
    asked.basis = f"in: by the student's tokenizer; out: {each} an answer, {words}"
    asked.tokens = Tokens(sure.prompt_tokens + votes.prompt_tokens * voting, 0, each * asked.requests)
    price = recipe.teacher.price_usd_per_mtok
    asked.usd, asked.usd_at_most = asked.tokens.usd(price), (sure.bound + votes.bound).usd(price)
    if votes.requests and not voting:
        asked.notes.append(f"up to {votes.requests:,} votes more, should the endpoint give no log-probabilities")
    return asked


def _caps_in_the_way(recipe: Recipe, asked: _Asked) -> list[str]:
    """A note for each cap that the estimate exceeds."""
    wanted: dict[str, Any] = {"requests": asked.requests, "tokens": asked.tokens.prompt + asked.tokens.completion}
    wanted["usd"] = asked.usd or 0
    caps = recipe.budget.model_dump(exclude_none=True)
    return [
        f"budget.{name} {cap} is below the estimate: the run would stop there, and goes on with a higher cap"
        for name, cap in caps.items()
        if wanted[name] > cap
    ]


def _notes(recipe: Recipe, data: Dataset) -> list[str]:
    teacher, notes = recipe.teacher, []
    if not (teacher.license_note or "").strip():
        notes.append("teacher.license_note is missing: may a model be trained on this teacher's answers?")
    if teacher.kind == "openai" and not recipe.budget.model_dump(exclude_none=True):
        notes.append("no cap in budget: set usd, tokens or requests")
    if getattr(recipe.select, "revision", None) == "review":
        notes.append("a review takes more than the question reckoned with here: 'at most' is no bound of it")
    if data.redacted:
        notes.append(f"teacher.redact hid {data.redacted} places")
    return notes


def _teacher(plan: Plan) -> str:
    teacher = plan.recipe.teacher
    if teacher.kind != "openai":
        return f"{teacher.kind}: {teacher.path}"
    batch = ", through its Batch API" if teacher.mode == "batch" else ""
    return f"{teacher.model} at {teacher_host(plan.recipe, plan.recipe_path)}{batch}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"


def _money(usd: str) -> str:
    """Rounded up to two significant digits, at least to cents: it is an estimate."""
    amount = Decimal(usd)
    places = max(2, 1 - amount.adjusted())
    return f"{amount.quantize(Decimal(1).scaleb(-places), ROUND_CEILING):,f}"
