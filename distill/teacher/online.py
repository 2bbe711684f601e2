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
from edgestill.distill.teacher.budget import Budget, Reservation
from edgestill.distill.teacher.conversation import Needs, Resolved
from edgestill.distill.teacher.endpoint import LONGEST_BACKOFF_S, Fault, Reply, Unsupported
from edgestill.distill.teacher.limits import Limiter
from edgestill.distill.teacher.prompt import Request
from edgestill.distill.teacher.protocol import Told
from edgestill.distill.teacher.section import TeacherSection
from edgestill.distill.teacher.store import Store, store_answer
from edgestill.runtime.errors import EdgestillError, GateFailed

LONGEST_WAIT_S = 600.0  # an endpoint that wants a longer pause is come back to
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
        accepted: Callable[[Request], None],
        concurrency: int,
    ) -> None:
        """All parts are made by the caller.

        `unsupported` says whether a request that was refused may be built anew; `accepted` hears of each that was not.
        """
        self._teacher, self._endpoint, self._store, self._budget = teacher, endpoint, store, budget
        self._resolve, self._unsupported, self._accepted = resolve, unsupported, accepted
        self._limiter = Limiter(teacher.requests_per_minute, teacher.tokens_per_minute)
        self._slots = asyncio.Semaphore(concurrency)
        # a few more rows than slots: while one answer is written to the disk, another request is on its way
        self._workers = concurrency + max(1, concurrency // 8)
        self._stopped: EdgestillError | None = None
        self._waiting: set[asyncio.Task[Any]] = set()
        self._asking: dict[str, asyncio.Future[None]] = {}
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

    def stop(self, reason: EdgestillError) -> None:
        """Send nothing more. What is in flight is waited for; whoever waits for something else waits no longer."""
        self._stopped = self._stopped or reason
        for task in self._waiting:
            task.cancel()

    async def _all(self, rows: Iterator[Row], told: Told) -> None:
        async def work() -> None:
            for row in rows:
                if self._stopped is not None:
                    return
                await self._row(row)
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
            if not all(await asyncio.gather(*(self._ask(request, row) for request in found.requests))):
                return

    async def _ask(self, request: Request, row: Row) -> bool:
        """Whether it is worth looking at the row again. Rows that need the same request share it."""
        try:
            if (other := self._asking.get(request.key)) is not None:
                with self._interruptible():
                    await asyncio.shield(other)
                return True
            self._asking[request.key] = asyncio.get_running_loop().create_future()
            try:
                return await self._until_decided(request, row)
            finally:
                self._asking.pop(request.key).set_result(None)
        except EdgestillError as error:
            self.stop(error)
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
        return False

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Around every wait that is not for an answer: `stop` ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)

    async def _until_decided(self, request: Request, row: Row) -> bool:
        """Send a request until it is decided; False when it failed for good, and that is recorded."""
        detail = ""
        for attempt in range(self._teacher.max_attempts):
            with self._interruptible():
                await self._slots.acquire()
            try:
                with self._interruptible():
                    charged = await self._limiter.wait(request.prompt_bound_tokens + request.completion_bound_tokens)
                    await self._budget.room(request)
                if self._stopped is not None:
                    return False
                reservation = await self._budget.reserve(request, row.split)
                outcome = await self._send(request, reservation)
            finally:
                self._slots.release()
            if isinstance(outcome, Reply):
                await self._keep(request, reservation, outcome, charged)
                return True
            if isinstance(outcome, Unsupported):
                await self._store.write([self._budget.settle_fault(reservation, billed=False)])
                if self._unsupported(request, outcome.named):
                    return True
                await self._record_failure(request, f"HTTP {outcome.status}: {outcome.message}")
                return False
            detail = outcome.detail
            await self._store.write([self._budget.settle_fault(reservation, outcome.billed)])
            if attempt + 1 < self._teacher.max_attempts:
                await self._back_off(attempt, outcome)
        await self._record_failure(request, detail)
        self._count_failure(detail)
        return False

    async def _send(self, request: Request, reservation: Reservation) -> Reply | Fault | Unsupported:
        try:
            return await self._endpoint.send(request.body)
        except EdgestillError:
            await self._store.write([self._budget.settle_fault(reservation, billed=False)])
            raise

    async def _keep(self, request: Request, reservation: Reservation, reply: Reply, charged: float) -> None:
        """Write the answer and what it cost; both are on the disk when this returns."""
        self._failed_in_a_row = 0
        response = dict(reply.response)
        if reply.latency_ms is not None:
            response["latency_ms"] = round(reply.latency_ms, 1)
        settled, cost, problem = self._budget.settle_response(reservation, response)
        attempt = f"{self._store.run_id}:{reservation.number}"
        await self._store.write([settled], [store_answer(request.key, response, attempt)])
        if "error" not in response:  # a prompt that was filtered says nothing about the request's form
            self._accepted(request)
        self._limiter.used(charged, cost.prompt + cost.completion)
        self._limiter.learn(reply.headers)
        if problem is not None:
            raise problem

    async def _back_off(self, attempt: int, fault: Fault) -> None:
        """Wait as long as the endpoint asks, else a random share of a doubling time ("full jitter")."""
        longest_s = min(LONGEST_BACKOFF_S, self._teacher.backoff_s * 2**attempt)
        wait_s = random.uniform(0, longest_s)
        self._limiter.learn(fault.headers)
        if fault.retry_after_s is not None and fault.retry_after_s > LONGEST_WAIT_S:
            wait = f"{self._endpoint.host} asks to be left alone for {fault.retry_after_s:.0f} s"
            raise EdgestillError(wait, "run the same command then: it goes on")
        if fault.retry_after_s is not None:
            self._limiter.pause(fault.retry_after_s)
            wait_s = fault.retry_after_s + random.uniform(0, min(1.0, 0.1 * fault.retry_after_s))
        elif fault.status == 429:
            self._limiter.pause(wait_s)
        with self._interruptible():
            await asyncio.sleep(wait_s)

    async def _record_failure(self, request: Request, detail: str) -> None:
        await self._store.write([("insert or replace into failures values(?, ?)", (request.key, detail))])

    def _count_failure(self, detail: str) -> None:
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
