"""A teacher that answers now: an OpenAI-compatible endpoint, online or in batches, or a model in this process.

What it said is in the cache; `answer` reads it there, so it costs nothing to ask twice.
"""

import asyncio
import hashlib
import heapq
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.budget import Budget, Tokens, usd_text
from edgestill.distill.teacher.conversation import Needs, Resolved, resolve
from edgestill.distill.teacher.prompt import Prompter, Request, first_dialect
from edgestill.distill.teacher.protocol import Annotation, Rejection, Spending, Told
from edgestill.distill.teacher.store import Store, cache_path, known_dialect, store_dialect
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import sha256_json

# Fields of the teacher's section on which its answers depend.
ASKED_WITH = (
    "kind", "model", "path", "temperature", "max_tokens", "answer_format", "rationale_order", "logprobs", "votes",
    "vote_temperature", "self_agreement_rows", "extra_body",
)  # fmt: skip


def live_fingerprint(recipe: Recipe, host: str) -> str:
    """Hash of everything that decides what is asked of whom; prices, caps and limits are not among it."""
    section = recipe.teacher.model_dump(mode="json")
    return sha256_json([host, {key: section[key] for key in ASKED_WITH}, recipe.sha256("task")])


class LiveTeacher:
    """Asks an endpoint through the cache and under the budget."""

    def __init__(self, recipe: Recipe, endpoint: Any, folder: Path, rows: Sequence[Row], fingerprint: str) -> None:
        """Open the cache and the run's spend record.

        Args:
            recipe: whose teacher is asked.
            endpoint: has `host`, `model`, `send`, `close`, and `one_at_a_time` where it cannot do more.
            folder: of the annotations; locked while this lives.
            rows: of the data set, of which some are asked twice.
            fingerprint: see `live_fingerprint`.

        Raises:
            EdgestillError: another process works on the folder.
        """
        self._recipe, self._endpoint, self.fingerprint = recipe, endpoint, fingerprint
        self.name = recipe.teacher.model or str(recipe.teacher.path)
        self._store = Store(folder, cache_path())
        dialect = known_dialect(cache_path(), recipe, endpoint.host, endpoint.model)
        self._prompter = Prompter(recipe, endpoint.host, endpoint.model, dialect)
        self.budget = Budget(self._store, recipe.budget, recipe.teacher.price_usd_per_mtok)
        self._twice = _asked_twice(rows, recipe.teacher.self_agreement_rows)

    def ask(self, rows: Iterable[Row], told: Told) -> EdgestillError | None:
        """See `protocol.Teacher`. Requests that failed for good in an earlier run are tried again."""
        self._store.write_now([("delete from failures", ())])
        return asyncio.run(self._ask(rows, told))

    async def _ask(self, rows: Iterable[Row], told: Told) -> EdgestillError | None:
        try:
            from edgestill.distill.teacher.online import Online

            teacher, parts = self._recipe.teacher, (self._endpoint, self._store, self.budget, self._resolve)
            concurrency = 1 if self._endpoint.one_at_a_time else teacher.concurrency
            online = Online(teacher, *parts, self._unsupported, concurrency)
            if teacher.mode == "online":
                if list(self._store.spend("select 1 from batches where state = 'open'")):
                    return EdgestillError(
                        "a batch of this run is still out, and will be paid for",
                        "set teacher.mode: batch once more: it waits for its answers and keeps them",
                    )
                return await online.run(rows, told)
            from edgestill.distill.teacher.batch import Batches

            return await Batches(teacher, *parts).run(rows, told, online)
        finally:
            await self._endpoint.close()

    def answer(self, row: Row) -> Annotation | Rejection | None:
        """See `protocol.Teacher`."""
        found = self._resolve(row)
        if isinstance(found, Needs):
            for request in found.requests:
                for (detail,) in self._store.spend("select detail from failures where key = ?", (request.key,)):
                    return Rejection(row.id, "endpoint_error", str(detail), "")
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
        price = self._recipe.teacher.price_usd_per_mtok
        query = (
            "select split, count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),"
            " sum(state = 'worst') from attempts group by split"
        )
        splits = {str(split): (int(n), Tokens(*map(int, sums)), int(worst))
                  for split, n, *sums, worst in self._store.spend(query)}  # fmt: skip
        total = sum((tokens for _, tokens, _ in splits.values()), Tokens())
        usd = {split: tokens.usd(price) for split, (_, tokens, _) in splits.items()}
        known = {split: amount for split, amount in usd.items() if amount is not None}
        return Spending(
            requests=sum(count for count, _, _ in splits.values()),
            prompt_tokens=total.prompt,
            completion_tokens=total.completion,
            usd=None if price is None else usd_text(sum(known.values(), Decimal(0))),
            usd_by_split=None if price is None else {split: usd_text(amount) for split, amount in known.items()},
            worst_case=sum(worst for _, _, worst in splits.values()),
        )

    def spent_so_far(self) -> str:
        """See `protocol.Teacher`."""
        usd = self.budget.spent_usd
        tokens = self.budget.spent.prompt + self.budget.spent.completion
        return f"{tokens:,} tokens" if usd is None else f"{usd:.4f} USD"

    def close(self) -> None:
        """See `protocol.Teacher`."""
        self._store.close()

    def _resolve(self, row: Row) -> Resolved | Needs:
        votes = self._recipe.teacher.votes
        return resolve(self._prompter, row.text, votes, row.id in self._twice, self._store.answer)

    def _unsupported(self, request: Request, message: str) -> bool:
        """Step down to what the endpoint accepts; False when its complaint names nothing that can be left out."""
        if request.dialect != self._prompter.dialect:
            return True  # another request has stepped down meanwhile
        fixed = self._recipe.teacher.answer_format != "auto"
        dialect = self._prompter.dialect.without(message, fixed)
        if dialect is None:
            return False
        host, model = self._endpoint.host, self._endpoint.model
        self._prompter = Prompter(self._recipe, host, model, dialect)
        self._store.write_now([], [store_dialect(host, model, first_dialect(self._recipe), dialect)])
        return True


def _asked_twice(rows: Sequence[Row], count: int) -> frozenset[str]:
    """Ids of the `count` rows whose hash is lowest: the same ones in every run."""
    rank = lambda row: hashlib.sha256(f"agreement:{row.id}".encode()).digest()  # noqa: E731
    return frozenset(row.id for row in heapq.nsmallest(count, rows, rank))
