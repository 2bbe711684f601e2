"""The hard cap: what a request may cost at most is reserved, durably, before it is sent, and settled after.

Counts tokens and requests; USD is tokens times the price, so that a mended price of the same teacher changes no count.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from edgestill.distill.teacher.prompt import Request
from edgestill.distill.teacher.section import BudgetSection, Price
from edgestill.distill.teacher.store import Store, Write
from edgestill.runtime.errors import BudgetReached, EdgestillError


@dataclass(frozen=True)
class Tokens:
    """Tokens of one or many requests; `cached` of the prompt tokens were in the endpoint's own cache."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt - other.prompt, self.cached - other.cached, self.completion - other.completion)

    def usd(self, price: Price | None) -> Decimal | None:
        """What they cost; None ("unknown", never 0) without a price."""
        if price is None:
            return None
        cached_input = price.input if price.cached_input is None else price.cached_input
        parts = (self.prompt - self.cached) * price.input + self.cached * cached_input + self.completion * price.output
        return parts / 1_000_000


def usd_text(usd: Decimal) -> str:
    """Exact decimal text, without trailing zeros or an exponent."""
    return f"{usd.normalize():f}"


def used_tokens(usage: Mapping[str, Any] | None) -> Tokens | None:
    """Tokens of a stored response's `usage`; None when the endpoint told none."""
    if not usage or usage.get("prompt_tokens") is None or usage.get("completion_tokens") is None:
        return None
    return Tokens(usage["prompt_tokens"], usage.get("cached_tokens") or 0, usage["completion_tokens"])


@dataclass(frozen=True)
class Reservation:
    """One attempt at a request, with the most it may cost."""

    number: int
    bound: Tokens


def bound_of(request: Request) -> Tokens:
    """The most that a request may cost."""
    return Tokens(request.prompt_bound_tokens, 0, request.completion_bound_tokens)


class Budget:
    """What a run has spent, what is in flight at its worst case, and whether one more request fits under the caps."""

    def __init__(self, store: Store, caps: BudgetSection, price: Price | None, host: str, model: str) -> None:
        """Read the run's record; attempts that a killed process left open are settled.

        An open attempt whose answer is in the cache is settled by its usage, any other at its worst case. What the
        folder has bought elsewhere, of another `host` or `model`, counts at the price it had there.

        Raises:
            EdgestillError: a cap in USD, and the folder has bought elsewhere at an unknown price.
        """
        self._store, self._caps, self._price = store, caps, price
        self._host, self._seller = host, f"{model} at {host}"
        self._settle_what_a_kill_left()
        self._next = int(next(iter(store.spend("select coalesce(max(id), 0) + 1 from attempts")))[0])
        self.requests = int(next(iter(store.spend("select count(*) from attempts")))[0])
        _, self.spent = self._sum("state != 'open'")
        _, self._spent_here = self._sum("state != 'open' and seller = ?", self._seller)
        self.in_flight, self.reserved = self._sum("state = 'open'")  # lines of batches that are still out
        self._freed = asyncio.Event()
        told = None if price is None else price.model_dump_json()
        store.write_now([("insert or replace into prices values(?, ?)", (self._seller, json.dumps(told)))])
        self._elsewhere_usd = self._usd_elsewhere()

    async def reserve(self, request: Request, split: str) -> Reservation:
        """Hold the worst case of a request, on the disk; to be sent at once. See `room`."""
        reservation = self.take(bound_of(request))
        try:
            await self._store.write([self.opened(reservation, request, split)])
        except BaseException:
            self.settle(reservation, "free", Tokens())  # it is not sent: others need not wait for it
            self.requests -= 1
            raise
        return reservation

    async def room(self, request: Request) -> None:
        """Return when a request fits; waits while requests in flight may still give some back.

        Raises:
            BudgetReached: nothing is in flight and the request may cost more than is left.
        """
        bound = bound_of(request)
        while (full := self._cap_reached(bound)) is not None:
            if self.in_flight == 0:
                raise BudgetReached(full, "raise that cap in the recipe's budget and run the same command: it goes on")
            self._freed.clear()
            await self._freed.wait()

    def take(self, bound: Tokens) -> Reservation:
        """Count a request as in flight; the caller makes it durable before it is sent."""
        reservation = Reservation(self._next, bound)
        self._next += 1
        self.requests += 1
        self.in_flight += 1
        self.reserved += bound
        return reservation

    def opened(self, reservation: Reservation, request: Request, split: str, batch: str | None = None) -> Write:
        """The write that makes a reservation durable."""
        bound = reservation.bound
        values = (reservation.number, request.key, request.purpose, split, bound.prompt, bound.completion, batch)
        return "insert into attempts values(?, ?, ?, ?, 'open', ?, 0, ?, ?, ?)", (*values, self._seller)

    def settle(self, reservation: Reservation, state: str, used: Tokens) -> Write:
        """Replace a reservation by what it came to; the returned write makes it durable."""
        self.in_flight -= 1
        self.reserved -= reservation.bound
        self.spent += used
        self._spent_here += used
        self._freed.set()
        return _settled(reservation.number, state, used)

    def settle_fault(self, reservation: Reservation, billed: bool) -> Write:
        """Settle a request that brought nothing, at its worst case where it may have been billed."""
        return self.settle(reservation, *(("worst", reservation.bound) if billed else ("free", Tokens())))

    def settle_response(
        self, reservation: Reservation, response: Mapping[str, Any]
    ) -> tuple[Write, Tokens, EdgestillError | None]:
        """Settle a request by its response: (the write, what it cost, why no cap can be promised any more).

        Without usage, and where a filter stopped it, it counts at its worst case.
        """
        bound, error = reservation.bound, response.get("error")
        used = used_tokens(response.get("usage"))
        if error is not None:
            used = bound if error["reason"] == "content_filter" else Tokens()
        state, cost = ("worst", bound) if used is None or used is bound else ("settled", used)
        problem = None
        if self._is_capped and (cost.prompt > bound.prompt or cost.completion > bound.completion):
            problem = EdgestillError(
                f"{self._host} billed {cost.prompt} + {cost.completion} tokens where at most {bound.prompt} + "
                f"{bound.completion} were possible, so no cap can be promised",
                "remove the cap, or use an endpoint that honours max_tokens",
            )
        return self.settle(reservation, state, cost), cost, problem

    @property
    def spent_usd(self) -> Decimal | None:
        """What the run has paid so far, None without a price."""
        here = self._spent_here.usd(self._price)
        return None if here is None or self._elsewhere_usd is None else here + self._elsewhere_usd

    def fits(self, bound: Tokens) -> bool:
        """Whether one more request with this worst case stays under every cap."""
        return self._cap_reached(bound) is None

    @property
    def _is_capped(self) -> bool:
        return self._caps.usd is not None or self._caps.tokens is not None

    def _cap_reached(self, bound: Tokens) -> str | None:
        """Which cap the next request could break, in words; None when it fits."""
        caps, worst = self._caps, self.spent + self.reserved + bound
        if caps.requests is not None and self.requests + 1 > caps.requests:
            return f"budget.requests {caps.requests} is reached: {self.requests} sent"
        tokens = worst.prompt + worst.completion
        if caps.tokens is not None and tokens > caps.tokens:
            spent = self.spent.prompt + self.spent.completion
            return f"budget.tokens {caps.tokens} is reached: {spent} spent, the next request may take {tokens - spent}"
        spent_usd, more_usd = self.spent_usd, (self.reserved + bound).usd(self._price)
        if caps.usd is not None and spent_usd is not None and more_usd is not None and spent_usd + more_usd > caps.usd:
            money = f"{usd_text(spent_usd)} spent, the next request may cost {usd_text(more_usd)}"
            return f"budget.usd {caps.usd} is reached: {money}"
        return None

    def _sum(self, where: str, *values: str) -> tuple[int, Tokens]:
        sums = "sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens)"
        count, *totals = next(iter(self._store.spend(f"select count(*), {sums} from attempts where {where}", values)))
        return int(count), Tokens(*(int(value or 0) for value in totals))

    def _usd_elsewhere(self) -> Decimal | None:
        total = Decimal(0)
        for seller, price in seller_prices(self._store).items():
            count, tokens = self._sum("seller = ?", seller)
            if seller == self._seller or count == 0:
                continue
            usd = tokens.usd(price)
            if usd is None and self._caps.usd is not None:
                raise EdgestillError(
                    f"this run has bought from {seller} at an unknown price, so budget.usd cannot be kept",
                    "name another folder with --out DIR, or cap tokens or requests",
                )
            if usd is None:
                return None
            total += usd
        return total

    def _settle_what_a_kill_left(self) -> None:
        writes = []
        query = "select id, key from attempts where state = 'open' and batch is null"
        for number, key in list(self._store.spend(query)):
            answer, attempt = self._store.bought(key) or ({}, "")
            used = used_tokens(answer.get("usage")) if attempt == f"{self._store.run_id}:{number}" else None
            if used is not None:
                writes.append(_settled(number, "settled", used))
            else:
                writes.append(("update attempts set state = 'worst' where id = ?", (number,)))
        self._store.write_now(writes)


def seller_prices(store: Store) -> dict[str, Price | None]:
    """The price that each model at each endpoint was last said to have, for all that a run's folder bought from."""
    told = {str(seller): json.loads(price) for seller, price in store.spend("select seller, price from prices")}
    return {seller: None if price is None else Price.model_validate_json(price) for seller, price in told.items()}


def _settled(number: int, state: str, used: Tokens) -> Write:
    columns = "state = ?, prompt_tokens = ?, cached_tokens = ?, completion_tokens = ?"
    values = (state, used.prompt, used.cached, used.completion, number)
    return f"update attempts set {columns} where id = ?", values
