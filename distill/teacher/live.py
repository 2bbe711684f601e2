"""A teacher that answers now: an OpenAI-compatible endpoint, online or in batches, or a model in this process.

What it said is in the cache; `answer` reads it there, so it costs nothing to ask twice.
"""

import asyncio
import contextlib
import hashlib
import heapq
import signal
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.budget import Budget, Tokens, seller_prices, usd_text
from edgestill.distill.teacher.conversation import Needs, Resolved, resolve
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.prompt import Dialect, Prompter, Request, first_dialect
from edgestill.distill.teacher.protocol import Annotation, Rejection, Spending, Told
from edgestill.distill.teacher.store import Store, cache_path, known_dialects, store_dialects
from edgestill.runtime.errors import EdgestillError, Interrupted
from edgestill.runtime.manifest import sha256_json

# Fields of the teacher's section on which its answers depend.
ASKED_WITH = (
    "kind", "model", "path", "temperature", "max_tokens", "answer_format", "rationale_order", "priming", "logprobs",
    "votes", "vote_temperature", "self_agreement_rows", "extra_body",
)  # fmt: skip


def live_fingerprint(recipe: Recipe, host: str) -> str:
    """Hash of everything that decides what is asked of whom; prices, caps and limits are not among it."""
    section = recipe.teacher.model_dump(mode="json")
    return sha256_json([host, {key: section[key] for key in ASKED_WITH}, recipe.sha256("task")])


class LiveTeacher:
    """Asks an endpoint through the cache and under the budget."""

    def __init__(
        self,
        recipe: Recipe,
        endpoint: Any,
        folder: Path,
        rows: Sequence[Row],
        fingerprint: str,
        form: Form | None = None,
    ) -> None:
        """Open the cache and the run's spend record.

        Args:
            recipe: whose teacher is asked.
            endpoint: has `host`, `model`, `send`, `close`, and `one_at_a_time` where it cannot do more.
            folder: of the annotations; locked while this lives.
            rows: of the data set, of which some are asked twice.
            fingerprint: see `live_fingerprint`.
            form: of the question and its answer; that of the recipe's task unless given.

        Raises:
            EdgestillError: another process works on the folder.
        """
        self._recipe, self._endpoint, self.fingerprint, self._form = recipe, endpoint, fingerprint, form
        self.name = recipe.teacher.model or str(recipe.teacher.path)
        self._store = Store(folder, cache_path())
        spoken = known_dialects(cache_path(), recipe, endpoint.host, endpoint.model)
        self._accepted_dialect = spoken[-1] if spoken else None
        self._prompters = [self._prompter(dialect) for dialect in spoken or [first_dialect(recipe)]]
        price = recipe.teacher.price_usd_per_mtok
        try:
            self.budget = Budget(self._store, recipe.budget, price, endpoint.host, endpoint.model)
        except EdgestillError:
            self._store.close()
            raise
        self._twice = asked_twice(rows, recipe.teacher.self_agreement_rows)

    def ask(self, rows: Iterable[Row], told: Told) -> EdgestillError | None:
        """See `protocol.Teacher`. Requests that failed for good in an earlier run are tried again."""
        self._store.write_now([("delete from failures", ())])
        return asyncio.run(self._ask(rows, told))

    async def _ask(self, rows: Iterable[Row], told: Told) -> EdgestillError | None:
        try:
            from edgestill.distill.teacher.online import Online

            teacher, parts = self._recipe.teacher, (self._endpoint, self._store, self.budget, self._resolve)
            concurrency = 1 if self._endpoint.one_at_a_time else teacher.concurrency
            online = Online(teacher, *parts, self._unsupported, self._accepted, concurrency)
            if teacher.mode == "online":
                if list(self._store.spend("select 1 from batches where state = 'open'")):
                    return EdgestillError(
                        "a batch of this run is still out, and will be paid for",
                        "set teacher.mode: batch once more: it waits for its answers and keeps them",
                    )
                with _stopped_by_ctrl_c(online):
                    return await online.run(rows, told)
            from edgestill.distill.teacher.batch import Batches

            return await Batches(teacher, *parts).run(rows, told, online)
        finally:
            await self._endpoint.close()

    def answer(self, row: Row) -> Annotation | Rejection | None:
        """See `protocol.Teacher`."""
        found = self._resolve(row)
        if isinstance(found, Needs):
            details = [detail for request in found.requests if (detail := self._failure(request)) is not None]
            if not details:
                return None
            if any(request.purpose in ("answer", "longer", "repair") for request in found.requests):
                return Rejection(row.id, "endpoint_error", details[0], "")
            found = self._resolve(row, confidence=False)  # a vote is missing for good: the answer itself is there
            if isinstance(found, Needs):
                return None
        steps = (*found.steps, *found.extra)
        bought = [self._store.bought(step.request.key) for step in steps]
        here = sum(one is not None and one[1].startswith(self._store.run_id + ":") for one in bought)
        tokens, extra = found.tokens, found.extra_tokens
        counts: dict[str, Any] = {
            "prompt_tokens": None if tokens is None else tokens.prompt,
            "completion_tokens": None if tokens is None else tokens.completion,
            "cached_tokens": None if tokens is None else tokens.cached,
            "requests": len(steps),
            "bought_here": here,
        }
        if found.reading.label is None:
            return Rejection(row.id, str(found.reading.reason), found.reading.detail, found.raw, **counts)
        waits_ms = [step.response.get("latency_ms") for step in found.steps]
        return Annotation(
            row.id,
            found.reading.label,
            found.probabilities,
            found.reading.rationale,
            raw=found.raw,
            latency_ms=sum(ms for ms in waits_ms if ms is not None) if None not in waits_ms else None,
            extra_prompt_tokens=None if extra is None else extra.prompt,
            extra_completion_tokens=None if extra is None else extra.completion,
            agrees=found.agrees,
            **counts,
        )

    def spending(self) -> Spending:
        """See `protocol.Teacher`; read from the run's record on the disk."""
        query = (
            "select split, seller, count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),"
            " sum(state = 'worst') from attempts group by split, seller"
        )
        prices, requests, worst_case = seller_prices(self._store), 0, 0
        by_split: dict[str, Decimal | None] = {}
        for split, seller, count, *sums, worst in self._store.spend(query):
            usd, before = Tokens(*map(int, sums)).usd(prices[seller]), by_split.get(split, Decimal(0))
            by_split[split] = None if usd is None or before is None else before + usd
            requests, worst_case = requests + int(count), worst_case + int(worst)
        known = {split: usd for split, usd in by_split.items() if usd is not None}
        if len(known) < len(by_split) or self.budget.spent_usd is None:
            return Spending(requests, None, None, worst_case)
        total = usd_text(sum(known.values(), Decimal(0)))
        return Spending(requests, total, {split: usd_text(usd) for split, usd in known.items()}, worst_case)

    def spent_so_far(self) -> str:
        """See `protocol.Teacher`."""
        usd = self.budget.spent_usd
        tokens = self.budget.spent.prompt + self.budget.spent.completion
        return f"{tokens:,} tokens" if usd is None else f"{usd:.4f} USD"

    def close(self) -> None:
        """See `protocol.Teacher`."""
        self._store.close()

    def _prompter(self, dialect: Dialect) -> Prompter:
        return Prompter(self._recipe, self._endpoint.host, self._endpoint.model, dialect, self._form)

    def _resolve(self, row: Row, confidence: bool = True) -> Resolved | Needs:
        """What is known in any dialect that was spoken, or what to ask in the last one."""
        votes, twice = (self._recipe.teacher.votes, row.id in self._twice) if confidence else (0, False)
        for prompter in reversed(self._prompters):
            found = resolve(prompter, row.text, votes, twice, self._store.answer)
            if isinstance(found, Resolved):
                return found
        return resolve(self._prompters[-1], row.text, votes, twice, self._store.answer)

    def _failure(self, request: Request) -> str | None:
        """Why a request failed for good in this run; None when it did not."""
        rows = self._store.spend("select detail from failures where key = ?", (request.key,))
        return next((str(detail) for (detail,) in rows), None)

    def _accepted(self, request: Request) -> None:
        """The endpoint took a request: from now on, one that it refuses is that row's own trouble."""
        if request.dialect != self._accepted_dialect:
            self._accepted_dialect = request.dialect
            spoken = [prompter.dialect for prompter in self._prompters]
            host, model = self._endpoint.host, self._endpoint.model
            self._store.write_now([], [store_dialects(host, model, first_dialect(self._recipe), spoken)])

    def _unsupported(self, request: Request, named: str) -> bool:
        """Step down to what the endpoint accepts; False when its complaint names nothing that can be left out."""
        if request.dialect != self._prompters[-1].dialect:
            return True  # another request has stepped down meanwhile
        if request.dialect == self._accepted_dialect:
            return False
        dialect = request.dialect.without(named, self._recipe.teacher.answer_format != "auto")
        if dialect is not None:
            self._prompters.append(self._prompter(dialect))
        return dialect is not None


@contextlib.contextmanager
def _stopped_by_ctrl_c(online: Any) -> Iterator[None]:
    """The first Ctrl-C stops asking and keeps what is in flight; a second one leaves at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        online.stop(Interrupted("stopped; what was in flight is kept", "the same command goes on from here"))

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (ValueError, RuntimeError):  # not in the main thread: Ctrl-C is not ours to take
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def asked_twice(rows: Sequence[Row], count: int) -> frozenset[str]:
    """Ids of the `count` rows whose hash is lowest: the same ones in every run."""
    rank = lambda row: hashlib.sha256(f"agreement:{row.id}".encode()).digest()  # noqa: E731
    return frozenset(row.id for row in heapq.nsmallest(count, rows, rank))
