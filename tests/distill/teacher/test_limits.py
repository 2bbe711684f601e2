"""How fast requests may go out: counted on a clock that jumps to the next timer, so that minutes take no time."""

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.distill.teacher import limits
from edgestill.distill.teacher.limits import Bucket, Limiter, duration_s

MINUTE_S = 60.0


class JumpingLoop(asyncio.SelectorEventLoop):
    """Sleeps without waiting: where a loop would wait for its next timer, its clock jumps there, and `late_s` beyond.

    Only for what uses no sockets and no threads.
    """

    def __init__(self, late_s: float) -> None:
        self.now_s, self.late_s = 1000.0, late_s
        super().__init__(JumpingSelector(self))

    def time(self) -> float:
        return self.now_s


class JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "all tasks wait for each other"
        self.loop.now_s += timeout + self.loop.late_s if timeout > 0 else 1e-6  # no step takes no time
        return super().select(0)


Sending = Callable[[JumpingLoop], Awaitable[None]]


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a coroutine on a clock that jumps."""

    def run(sending: Sending, late_s: float = 1e-4) -> None:
        loop = JumpingLoop(late_s)
        monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=loop.time))
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(sending(loop))  # type: ignore[arg-type]

    return run


async def sent_at(
    loop: JumpingLoop, limiter: Limiter, seconds: float, waiters: int = 64, tokens: int = 0
) -> list[float]:
    """When requests went out, of as many waiters that ask again at once, for so long."""
    sent: list[float] = []
    end_s = loop.now_s + seconds

    async def work() -> None:
        while loop.now_s < end_s:
            charged = await limiter.wait(4 * tokens)
            sent.append(loop.now_s)
            limiter.used(charged, tokens)
            await asyncio.sleep(1e-3)

    await asyncio.gather(*(work() for _ in range(waiters)))
    return [at_s for at_s in sent if at_s < end_s]


def most_in_a_minute(sent: list[float]) -> int:
    most, first = 0, 0
    for last, at_s in enumerate(sent):
        while sent[first] <= at_s - MINUTE_S:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("limit", [1, 3, 59, 60, 61, 500, 3000])
@pytest.mark.parametrize("late_s", [1e-4, 0.02])
def test_no_minute_passes_more_than_the_limit_and_a_sixtieth_nor_much_less(
    jump: Any, limit: int, late_s: float
) -> None:
    async def sending(loop: JumpingLoop) -> None:
        limiter = Limiter(limit, None)
        loop.now_s += 2 * MINUTE_S  # what was not used is not saved
        sent = await sent_at(loop, limiter, 3 * MINUTE_S)
        assert most_in_a_minute(sent) <= max(limit, limit * (1 + 1 / 60) + 1e-6)
        assert len(sent) >= 0.95 * 3 * limit

    jump(sending, late_s)


@given(st.floats(1, 5000), st.lists(st.floats(0, 5), min_size=1, max_size=300))
def test_a_bucket_passes_no_more_whenever_it_is_asked(per_minute: float, gaps_s: list[float]) -> None:
    bucket, now_s, sent = Bucket(per_minute), 1000.0, list[float]()
    for gap_s in gaps_s:
        now_s += gap_s
        while bucket.wait_s(now_s, 1.0) <= 0:
            bucket.level -= 1.0
            sent.append(now_s)
    assert most_in_a_minute(sent) <= per_minute + max(1.0, per_minute / 60) + 1e-6


def test_what_a_bucket_says_to_wait_is_enough_and_not_too_long() -> None:
    bucket = Bucket(120, level=0.5, updated_s=10.0)
    assert bucket.wait_s(10.0, 1.0) == pytest.approx(0.25)
    assert bucket.wait_s(10.2, 1.0) == pytest.approx(0.05)
    assert bucket.wait_s(10.25, 1.0) == pytest.approx(0.0, abs=1e-9)
    assert bucket.wait_s(99.0, 500.0) == 0.0  # more than it ever holds: taken when it is full
    bucket.level -= 500.0
    assert bucket.wait_s(99.0, 1.0) == pytest.approx(499 / 2)


@pytest.mark.parametrize("tokens", [10, 200, 5000])
def test_tokens_are_held_to_their_limit(jump: Any, tokens: int) -> None:
    async def sending(loop: JumpingLoop) -> None:
        sent = await sent_at(loop, Limiter(None, 60_000), 3 * MINUTE_S, tokens=tokens)
        assert most_in_a_minute(sent) * tokens <= 61_000 + tokens
        assert len(sent) * tokens >= 0.95 * 180_000

    jump(sending)


def test_the_tighter_of_two_limits_holds(jump: Any) -> None:
    async def sending(loop: JumpingLoop) -> None:
        assert 295 <= len(await sent_at(loop, Limiter(300, 60_000), MINUTE_S, tokens=100)) <= 305
        assert 95 <= len(await sent_at(loop, Limiter(300, 60_000), MINUTE_S, tokens=600)) <= 103

    jump(sending)


def test_a_charge_is_what_requests_took_and_is_corrected(jump: Any) -> None:
    async def sending(loop: JumpingLoop) -> None:
        limiter = Limiter(None, 6000)
        assert await limiter.wait(400) == 100  # a quarter of the worst case
        limiter.used(100, 600)
        start_s = loop.now_s
        assert await limiter.wait(400) == 600  # as the one before: 500 are owed, and a second's worth must be there
        assert loop.now_s - start_s == pytest.approx(6.0, abs=0.01)
        limiter.used(600, 0)
        assert await limiter.wait(400) == pytest.approx(570)

    jump(sending)


def test_without_a_limit_nothing_waits(jump: Any) -> None:
    async def sending(loop: JumpingLoop) -> None:
        start_s, limiter = loop.now_s, Limiter(None, None)
        for _ in range(10_000):
            limiter.used(await limiter.wait(400), 1000)
        assert loop.now_s == start_s

    jump(sending)


def test_a_pause_holds_all_and_is_never_shortened(jump: Any) -> None:
    async def sending(loop: JumpingLoop) -> None:
        limiter, start_s = Limiter(6000, None), loop.now_s
        limiter.pause(30.0)
        limiter.pause(5.0)
        loop.call_later(20.0, limiter.pause, 40.0)  # while all are waiting
        sent = await sent_at(loop, limiter, 61.0)
        assert len(sent) > 100
        assert min(sent) == pytest.approx(start_s + 60.0, abs=0.01)

    jump(sending)


def test_who_waits_first_is_sent_first_and_one_who_gives_up_takes_nothing(jump: Any) -> None:
    async def sending(loop: JumpingLoop) -> None:
        limiter, order = Limiter(60, None), list[int]()

        async def work(number: int) -> None:
            await limiter.wait(0)
            order.append(number)

        start_s = loop.now_s
        tasks = [asyncio.create_task(work(number)) for number in range(8)]
        loop.call_later(0.5, tasks[1].cancel)
        loop.call_later(1.5, tasks[5].cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 2, 3, 4, 6, 7]
        assert loop.now_s - start_s == pytest.approx(5.0, abs=0.01)

    jump(sending)


def test_on_a_real_clock_64_waiters_get_what_the_limit_gives_and_no_more() -> None:
    async def sending() -> tuple[int, float]:
        limiter, rate = Limiter(60 * 400, None), 400
        for _ in range(rate):
            await limiter.wait(0)  # the second's worth that may go at once
        count, start_s = 0, time.monotonic()

        async def work() -> None:
            nonlocal count
            while time.monotonic() - start_s < 0.5:
                await limiter.wait(0)
                count += 1

        await asyncio.gather(*(work() for _ in range(64)))
        return count, rate * (time.monotonic() - start_s)

    count, allowed = asyncio.run(sending())
    assert 0.95 * allowed <= count <= allowed + 2


LEARNT = [
    ({"x-ratelimit-limit-requests": "120"}, None, 120),
    ({"x-ratelimit-limit-requests": "120"}, 600, 120),
    ({"x-ratelimit-limit-requests": "600"}, 120, 120),
    ({"x-ratelimit-limit-requests": "600.0"}, None, 600),
    ({}, 60, 60),
    ({"x-ratelimit-limit-requests": "0"}, 60, 60),
    ({"x-ratelimit-limit-requests": "-1"}, 60, 60),
    ({"x-ratelimit-limit-requests": "nan"}, 60, 60),
    ({"x-ratelimit-limit-requests": "inf"}, 60, 60),
    ({"x-ratelimit-limit-requests": "many"}, 60, 60),
    ({"x-ratelimit-limit-requests": "30, 30;w=60"}, 60, 60),
    ({"x-ratelimit-limit-tokens": "6000"}, 60, 60),
]


@pytest.mark.parametrize(("headers", "given_", "holds"), LEARNT, ids=range(len(LEARNT)))
def test_headers_tell_a_limit_and_only_lower_a_given_one(
    jump: Any, headers: dict[str, str], given_: int | None, holds: int
) -> None:
    async def sending(loop: JumpingLoop) -> None:
        limiter = Limiter(given_, None)
        limiter.learn(headers)
        assert 0.95 * holds <= len(await sent_at(loop, limiter, MINUTE_S)) <= holds * (1 + 1 / 60) + 1

    jump(sending)


def test_a_lowered_limit_rises_again_up_to_the_given_one(jump: Any) -> None:
    async def sending(loop: JumpingLoop) -> None:
        limiter = Limiter(600, None)
        for told, holds in (("60", 60), ("300", 300), ("9000", 600)):
            limiter.learn({"x-ratelimit-limit-requests": told})
            assert len(await sent_at(loop, limiter, MINUTE_S)) == pytest.approx(holds, rel=0.05)

    jump(sending)


def test_learnt_tokens_hold_too(jump: Any) -> None:
    async def sending(loop: JumpingLoop) -> None:
        limiter = Limiter(None, None)
        limiter.learn({"x-ratelimit-limit-tokens": "6000"})
        assert len(await sent_at(loop, limiter, MINUTE_S, tokens=100)) == pytest.approx(60, abs=2)

    jump(sending)


@pytest.mark.parametrize("name", ["requests", "tokens"])
@pytest.mark.parametrize(
    ("remaining", "reset", "paused_s"),
    [
        ("0", "20ms", 0.02),
        ("0", "1.5", 1.5),
        ("0", "7m30.5s", 60.0),  # at most a minute, then it is asked again
        ("0", "59s", 59.0),
        ("0.0", "2s", 2.0),
        ("0", "soon", 0.0),
        ("0", None, 0.0),
        ("1", "6m0s", 0.0),
        (None, "6m0s", 0.0),
        ("none", "6m0s", 0.0),
    ],
)
def test_nothing_left_is_a_pause_until_the_reset(
    jump: Any, name: str, remaining: str | None, reset: str | None, paused_s: float
) -> None:
    told = {f"x-ratelimit-remaining-{name}": remaining, f"x-ratelimit-reset-{name}": reset}

    async def sending(loop: JumpingLoop) -> None:
        limiter, start_s = Limiter(None, None), loop.now_s
        limiter.learn({key: value for key, value in told.items() if value is not None})
        await limiter.wait(10)
        assert loop.now_s - start_s == pytest.approx(paused_s, abs=1e-3)

    jump(sending)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5", 1.5),
        ("0", 0.0),
        (" 3 ", 3.0),
        ("20ms", 0.02),
        ("0s", 0.0),
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("2m59.56s", 179.56),
        ("1s500ms", 1.5),
        (" 1m ", 60.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("-5s", None),
        ("nan", None),
        ("inf", None),
        ("1m30", None),
        ("5 s", None),
        ("5d", None),
        ("m", None),
        ("s5", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration_s(text) == (seconds if seconds is None else pytest.approx(seconds))
