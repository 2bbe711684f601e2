"""Ask about many rows at once, online: bounded concurrency, limits, retries of transient faults, the smoke gate.

A request is reserved on the disk before it is sent; an answer is on the disk before it is used. Nothing in flight is
thrown away when the run stops: it was paid for.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

from edgestill.distill.dataset import Row
from edgestill.distill.teacher.budget import Budget, Reservation, Tokens, used_tokens
from edgestill.distill.teacher.conversation import Needs, Resolved
from edgestill.distill.teacher.endpoint import Fault, Reply, Unsupported
from edgestill.distill.teacher.limits import Limiter
from edgestill.distill.teacher.prompt import Request
from edgestill.distill.teacher.protocol import Told
from edgestill.distill.teacher.section import TeacherSection
from edgestill.distill.teacher.store import Store, store_answer
from edgestill.runtime.errors import EdgestillError, GateFailed

LONGEST_BACKOFF_S = 60.0
SMOKE_MIN_ACCEPTED = 0.75
GIVE_UP_AFTER = 20  # rows that failed one after the other: the endpoint is down, not the row


class Endpoint(Protocol):
    """Answers one request body."""

    host: str

    async def send(self, body: Mapping[str, Any]) -> Reply | Fault | Unsupported:
        """Ask once."""
        ...


class Online:
    """One run of asking. `resolve` tells what a row still needs; `unsupported` is told what the endpoint refused."""

    def __init__(
        self,
        teacher: TeacherSection,
        endpoint: Endpoint,
        store: Store,
        budget: Budget,
        resolve: Callable[[Row], Resolved | Needs],
        unsupported: Callable[[Request, str], bool],
        concurrency: int,
    ) -> None:
        """All parts are made by the caller; `unsupported` says whether the request may be built anew."""
        self._teacher, self._endpoint, self._store, self._budget = teacher, endpoint, store, budget
        self._resolve, self._unsupported = resolve, unsupported
        self._limiter = Limiter(teacher.requests_per_minute, teacher.tokens_per_minute)
        self._slots = asyncio.Semaphore(concurrency)
        # a few more rows than slots: while one answer is written to the disk, another request is on its way
        self._workers = concurrency + max(1, concurrency // 8)
        self._stopped: EdgestillError | None = None
        self._over = asyncio.Event()
        self._failed_in_a_row = 0
        self._done = 0

    async def run(self, rows: Iterable[Row], told: Told) -> EdgestillError | None:
        """Ask about all rows; the reason why it stopped before the end, or None."""
        waiting = iter(rows)
        smoke = list(islice(waiting, max(1, self._teacher.smoke_rows)))
        await self._all(iter(smoke[:1]), told)  # alone: it finds out what the endpoint accepts
        await self._all(iter(smoke[1:]), told)
        if self._stopped is None and self._teacher.smoke_rows:
            self._stopped = smoke_gate([self._resolve(row) for row in smoke])
        await self._all(waiting, told)
        return self._stopped

    async def _all(self, rows: Iterator[Row], told: Told) -> None:
        async def work() -> None:
            for row in rows:
                if self._stopped is not None:
                    return
                try:
                    await self._row(row)
                except EdgestillError as error:
                    self._stopped = self._stopped or error
                    self._over.set()
                self._done += 1
                told(self._done)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(work())

    async def _row(self, row: Row) -> None:
        """Ask until nothing is missing, or a request failed for good."""
        while self._stopped is None:
            found = self._resolve(row)
            if isinstance(found, Resolved):
                return
            asked = (self._until_decided(request, row) for request in found.requests)
            results = await asyncio.gather(*asked, return_exceptions=True)  # what was sent is waited for
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            if not all(results):
                return

    async def _until_decided(self, request: Request, row: Row) -> bool:
        """Send a request until it is decided; False when it failed for good, and that is recorded."""
        detail = ""
        for attempt in range(self._teacher.max_attempts):
            async with self._slots:
                charged = await self._limiter.wait(request.prompt_bound_tokens + request.completion_bound_tokens)
                if self._stopped is not None:
                    return False
                reservation = await self._budget.reserve(request, row.split)
                outcome = await self._send(request, reservation)
            if isinstance(outcome, Reply):
                await self._keep(request, reservation, outcome, charged)
                return True
            if isinstance(outcome, Unsupported):
                await self._store.write([self._budget.settle(reservation, "free", Tokens())])
                if self._unsupported(request, outcome.message):
                    return True
                detail = f"HTTP {outcome.status}: {outcome.message}"
                break
            detail = outcome.detail
            used = reservation.bound if outcome.billed else Tokens()
            await self._store.write([self._budget.settle(reservation, "worst" if outcome.billed else "free", used)])
            if attempt + 1 < self._teacher.max_attempts:
                await self._back_off(attempt, outcome)
        await self._give_up(request, detail)
        return False

    async def _send(self, request: Request, reservation: Reservation) -> Reply | Fault | Unsupported:
        try:
            return await self._endpoint.send(request.body)
        except EdgestillError:
            await self._store.write([self._budget.settle(reservation, "free", Tokens())])
            raise

    async def _keep(self, request: Request, reservation: Reservation, reply: Reply, charged: float) -> None:
        """Write the answer and what it cost; both are on the disk when this returns."""
        self._failed_in_a_row = 0
        response = dict(reply.response)
        if reply.latency_ms is not None:
            response["latency_ms"] = round(reply.latency_ms, 1)
        used = Tokens() if "error" in response else used_tokens(response.get("usage"))
        state, cost = ("worst", reservation.bound) if used is None else ("settled", used)
        attempt = f"{self._store.run_id}:{reservation.number}"
        settled = self._budget.settle(reservation, state, cost)
        await self._store.write([settled], [store_answer(request.key, response, attempt)])
        self._limiter.used(charged, cost.prompt + cost.completion)
        self._limiter.learn(reply.headers)
        if self._budget.capped and self._budget.exceeds_bound(reservation, cost):
            asked = f"{reservation.bound.prompt} + {reservation.bound.completion}"
            raise EdgestillError(
                f"{self._endpoint.host} billed {cost.prompt} + {cost.completion} tokens where at most {asked} were "
                "possible, so no cap can be promised",
                "remove the cap, or use an endpoint that honours max_tokens",
            )

    async def _back_off(self, attempt: int, fault: Fault) -> None:
        """Wait as long as the endpoint asks, else a random share of a doubling time ("full jitter")."""
        longest_s = min(LONGEST_BACKOFF_S, self._teacher.backoff_s * 2**attempt)
        wait_s = random.uniform(0, longest_s)
        self._limiter.learn(fault.headers)
        if fault.retry_after_s is not None:
            self._limiter.pause(fault.retry_after_s)
            wait_s = fault.retry_after_s + random.uniform(0, min(1.0, 0.1 * fault.retry_after_s))
        elif fault.status == 429:
            self._limiter.pause(wait_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), wait_s)

    async def _give_up(self, request: Request, detail: str) -> None:
        await self._store.write([("insert or replace into failures values(?, ?)", (request.key, detail))])
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= GIVE_UP_AFTER:
            raise EdgestillError(
                f"{self._endpoint.host} failed {self._failed_in_a_row} requests in a row: {detail}",
                "the same command goes on when it answers again",
            )


def smoke_gate(found: list[Resolved | Needs]) -> GateFailed | None:
    """The gate before the rest is paid for: most of the first rows must have a usable answer."""
    accepted = sum(isinstance(one, Resolved) and one.reading.label is not None for one in found)
    if accepted >= SMOKE_MIN_ACCEPTED * len(found):
        return None
    reasons = Counter(
        str(one.reading.reason) if isinstance(one, Resolved) else "endpoint_error"
        for one in found
        if not (isinstance(one, Resolved) and one.reading.label is not None)
    )
    said = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return GateFailed(
        f"smoke gate: {accepted} of the first {len(found)} rows have a usable answer ({said}), "
        f"wanted {SMOKE_MIN_ACCEPTED:.0%}; nothing else was sent",
        "look at edgestill rejects, mend the recipe, or set teacher.smoke_rows: 0",
    )
