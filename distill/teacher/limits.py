"""Requests and tokens per minute, given or learnt from the endpoint's headers, and pauses that it asks for."""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

# A second's worth may go at once; the rest is spread, so that no minute sees more than the limit and a sixtieth.
BURST_S = 1.0


@dataclass
class Bucket:
    """Fills with `per_minute` / 60 a second up to a second's worth; may be overdrawn."""

    per_minute: float
    level: float = 0.0
    updated_s: float = 0.0

    def wait_s(self, now_s: float, amount: float) -> float:
        """Seconds until so much may be taken; more than a second's worth is taken from a full bucket."""
        rate = self.per_minute / 60
        full = rate * BURST_S
        self.level = min(full, self.level + (now_s - self.updated_s) * rate)
        self.updated_s = now_s
        return max(0.0, (min(amount, full) - self.level) / rate)


class Limiter:
    """Holds requests back: two buckets and a pause that holds for all."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        """None is no limit, until the endpoint's headers tell one."""
        self._given = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._buckets: dict[str, Bucket] = {}
        for name, limit in self._given.items():
            if limit is not None:
                self._limit(name, limit)
        self._turn = asyncio.Lock()
        self._paused_until_s = 0.0
        self._mean_tokens: float | None = None

    async def wait(self, bound_tokens: int) -> float:
        """Return when a request may be sent; the tokens it was charged, to be given to `used`. First come, first sent.

        A request is charged what requests took on average so far, or a quarter of its worst case before any is known.
        """
        async with self._turn:  # one looks at the clock, the others wait for it
            while True:
                tokens = self._mean_tokens if self._mean_tokens is not None else bound_tokens / 4
                charge = {"requests": 1.0, "tokens": tokens}
                if (wait_s := self._wait_s(charge)) <= 0:
                    break
                await asyncio.sleep(wait_s)
            for name, bucket in self._buckets.items():
                bucket.level -= charge[name]
            return tokens

    def used(self, charged: float, tokens: int) -> None:
        """Correct the charge of a request by what it took."""
        mean = self._mean_tokens
        self._mean_tokens = tokens if mean is None else 0.95 * mean + 0.05 * tokens
        if "tokens" in self._buckets:
            self._buckets["tokens"].level -= tokens - charged

    def pause(self, seconds: float) -> None:
        """Send nothing for so long."""
        self._paused_until_s = max(self._paused_until_s, time.monotonic() + seconds)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take limits from `x-ratelimit-*` headers; a limit given in the recipe is only ever lowered by them."""
        for name in ("requests", "tokens"):
            limit = _number(headers.get(f"x-ratelimit-limit-{name}"))
            given = self._given[name]
            if limit is not None and limit >= 1:
                self._limit(name, limit if given is None else min(limit, given))
            if _number(headers.get(f"x-ratelimit-remaining-{name}")) == 0:
                reset_s = duration_s(headers.get(f"x-ratelimit-reset-{name}"))
                if reset_s is not None:
                    self.pause(min(reset_s, 60.0))

    def _limit(self, name: str, per_minute: float) -> None:
        now_s = time.monotonic()
        bucket = self._buckets.setdefault(name, Bucket(per_minute, per_minute / 60 * BURST_S, now_s))
        bucket.per_minute = per_minute

    def _wait_s(self, charge: Mapping[str, float]) -> float:
        now_s = time.monotonic()
        waits_s = [bucket.wait_s(now_s, charge[name]) for name, bucket in self._buckets.items()]
        return max([self._paused_until_s - now_s, *waits_s])


def duration_s(text: str | None) -> float | None:
    """Seconds of `1.5`, `20ms`, `6m0s` or `1h2m3s`; None for anything else."""
    if text is None:
        return None
    if (plain := _number(text)) is not None:
        return plain
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text.strip())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}[unit] for number, unit in parts)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e15 else None
