"""One request to an OpenAI-compatible endpoint and what became of it. No retries, no cache, no money.

Retries are the engine's: the SDK's own would be paid for unseen.
"""

import asyncio
import email.utils
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgestill.distill.teacher.completion import clean, compact
from edgestill.distill.teacher.limits import duration_s
from edgestill.distill.teacher.prompt import OPTIONAL
from edgestill.distill.teacher.section import TeacherSection
from edgestill.runtime.errors import EdgestillError, UsageError

CONNECTIONS_A_POOL = 16
NO_KEY = "no-key"  # local servers want a header and do not read it
FATAL = {
    401: "the key is not accepted; check the variable {key_env}",
    402: "the account has no credit left; the same command goes on once it has",
    403: "the key may not use this model or address; check teacher.model and the account",
    404: "no such model or address; check teacher.model and teacher.base_url",
}
# With these the endpoint says that it did nothing. Behind 408 and any other 5xx a model may have answered.
KNOWN_IDLE = {409, 425, 429, 500, 503, 529}
FILTERED = {"content_filter", "content_policy_violation"}
NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "LocalProtocolError", "UnsupportedProtocol"}
LONGEST_BACKOFF_S = 60.0
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "account_deactivated"}


@dataclass(frozen=True)
class Reply:
    """A request that the endpoint decided: a response to keep, as `parse.read_response` reads it."""

    response: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    latency_ms: float | None = None


@dataclass(frozen=True)
class Fault:
    """A request that may be tried again. `billed` is False where the endpoint says it did nothing."""

    detail: str
    billed: bool
    status: int | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unsupported:
    """The endpoint does not take the request: a 400 or 422. `named` is what it says is wrong with it."""

    message: str
    status: int
    named: str


class OpenAIEndpoint:
    """Sends chat completions through the `openai` package; the key stays in the environment and in its header."""

    one_at_a_time = False

    def __init__(self, teacher: TeacherSection, base_url: str, host: str) -> None:
        """Open clients for `base_url`; `host` names the endpoint in messages and in the cache.

        Raises:
            UsageError: no key in the environment for an endpoint that is not named, so needs one, or one that no
                header can hold.
        """
        import httpx2
        import openai

        key = (os.environ.get(teacher.key_env) or "").strip()
        if not key and teacher.base_url is None:
            raise UsageError(f"the variable {teacher.key_env} holds no key", f"type: export {teacher.key_env}=...")
        if not key.isascii() or not key.isprintable():
            raise UsageError(f"the variable {teacher.key_env} holds characters that no key has", "copy it again")
        self._sdk, self._key, self._key_env = openai, key, teacher.key_env
        self._response, self._timeout_s = httpx2.Response, teacher.timeout_s
        # a pool looks at all its connections for each request: many small pools cost less than a large one
        pools = -(-teacher.concurrency // CONNECTIONS_A_POOL)
        limits = httpx2.Limits(max_connections=2 * CONNECTIONS_A_POOL, max_keepalive_connections=2 * CONNECTIONS_A_POOL)
        self._clients = [
            openai.AsyncOpenAI(
                api_key=key or NO_KEY,
                base_url=base_url,
                max_retries=0,
                timeout=teacher.timeout_s,
                http_client=openai.DefaultAsyncHttpxClient(limits=limits),
            )
            for _ in range(pools)
        ]
        self._turns = itertools.cycle(self._clients)
        self.client = self._clients[0]
        self.host, self.model = host, str(teacher.model)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()

    async def send(self, body: Mapping[str, Any]) -> Reply | Fault | Unsupported:
        """Ask once.

        Raises:
            EdgestillError: 401, 402, 403, 404 or an exhausted quota: no other request would fare better.
        """
        start, client = time.perf_counter(), next(self._turns)
        # the body is JSON already: the client's own method for chat would walk it once more by its types
        call = lambda: client.post("/chat/completions", body=dict(body), cast_to=self._response)  # noqa: E731
        raw = await self.guarded(call, self._timeout_s)
        if isinstance(raw, Reply | Fault | Unsupported):
            return raw
        latency_ms = (time.perf_counter() - start) * 1e3
        try:
            return Reply(compact(json.loads(raw.content)), raw.headers, latency_ms)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Fault(f"the body is no chat completion: {self.scrub(raw.content)[:80]!r}", billed=True)

    async def guarded(self, call: Callable[[], Awaitable[Any]], timeout_s: float) -> Any:
        """What a call of the SDK returns, or what its failure means.

        Raises:
            EdgestillError: no other request would fare better.
        """
        start = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):  # the SDK's own limit is per read: a slow drip never ends it
                return await call()
        except self._sdk.APIStatusError as error:
            return self.judge(error.status_code, error.body, error.response.headers)
        except (self._sdk.APIConnectionError, TimeoutError) as error:
            words = "timed out" if isinstance(error, TimeoutError) else type(error.__cause__ or error).__name__
            return Fault(f"{words} after {time.perf_counter() - start:.1f} s", billed=not _never_connected(error))

    def judge(self, status: int, body: object, headers: Mapping[str, str]) -> Reply | Fault | Unsupported:
        """What an HTTP error means.

        Raises:
            EdgestillError: no other request would fare better.
        """
        error = body.get("error", body) if isinstance(body, dict) else {}
        error = error if isinstance(error, dict) else {"message": error}
        message = self.scrub(str(error.get("message") or body or "no message"))[:1000]
        code, param = str(error.get("code") or ""), str(error.get("param") or "")
        if code in FILTERED or _is_flagged(error):
            return Reply({"error": {"status": status, "message": message, "reason": "content_filter"}})
        if status in FATAL or code in QUOTA_CODES:
            hint = FATAL.get(status, FATAL[402]).format(key_env=self._key_env)
            raise EdgestillError(f"the teacher at {self.host} answered HTTP {status}: {message}", hint)
        if status == 500 and any(word in message for word in OPTIONAL):
            return Unsupported(message, status, message)  # llama-cpp-python's server says so with 500
        if status in KNOWN_IDLE or status == 408 or status >= 500:
            billed, wait_s = status not in KNOWN_IDLE, retry_after_s(headers)
            return Fault(f"HTTP {status}: {message}", billed, status, wait_s, headers)
        if code == "context_length_exceeded" or "context length" in message or "context window" in message:
            return Reply({"error": {"status": status, "message": message, "reason": "too_long"}})
        return Unsupported(message, status, param or message)

    def scrub(self, text: str | bytes) -> str:
        """`text` without the key: endpoints like to repeat it in their complaints."""
        words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return clean(words.replace(self._key, "[key]") if self._key else words)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `Retry-After` (RFC 9110: a number or a date); None without one."""
    if (milliseconds := duration_s(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1e3
    value = headers.get("retry-after")
    if value is None or (seconds := duration_s(value)) is not None:
        return None if value is None else seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_flagged(error: Mapping[str, Any]) -> bool:
    """Whether a moderation stopped the prompt, as OpenRouter tells it with a 403."""
    metadata = error.get("metadata")
    return isinstance(metadata, dict) and bool(metadata.get("flagged_input") or metadata.get("reasons"))


def _never_connected(error: BaseException) -> bool:
    """Whether the connection was refused or never came about, so that nothing was asked."""
    return type(error.__cause__).__name__ in NEVER_SENT
