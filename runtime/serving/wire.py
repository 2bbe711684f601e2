"""A request's JSON object read key by key, and errors in OpenAI's shape. Knows no route and no model.

Source of names and shapes: OpenAI's API reference, chat completions and completions.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_IGNORED = 32
HEADER_SAFE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_CHOICES, MAX_STOPS = 16, 16
MAX_TOP_LOGPROBS = 20  # as OpenAI's API
# a greedy answer is the same whatever these are, when they are at these values
NO_EFFECT = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}}


class ApiError(Exception):
    """An answer that says why there is none; `param` names the key at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        """`status` is the HTTP status; from 500 on the fault is the server's."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        """The error object that OpenAI's clients read."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Ask:
    """The keys of a request. Each is read once, with its type checked; what nobody reads is ignored and named so."""

    def __init__(self, body: bytes) -> None:
        """Read UTF-8 JSON.

        Raises:
            ApiError: 400, no JSON or no object.
        """
        try:
            value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not JSON in UTF-8: {str(error)[:200]}", code="bad_json") from None
        if not isinstance(value, dict):
            raise ApiError(400, f"the body is of type {type(value).__name__}, wanted an object", code="bad_json")
        self._left: dict[str, Any] = {key: value for key, value in value.items() if value is not None}

    def take(self, key: str) -> Any:
        """The value of `key`, None where it is absent or null."""
        return self._left.pop(key, None)

    def text(self, key: str, default: str) -> str:
        """A text.

        Raises:
            ApiError: 400, another type; so do the others.
        """
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise _wrong(key, value, "text")
        return value

    def flag(self, key: str) -> bool:
        """True or false, false where it is absent."""
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            raise _wrong(key, value, "true or false")
        return bool(value)

    def number(self, key: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, None where it is absent."""
        value = self.take(key)
        if value is not None and (type(value) is not int or not low <= value <= high):
            raise _wrong(key, value, f"a whole number from {low} to {high}")
        return value if value is None else int(value)

    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        value = self.take("stop")
        found = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(found, list) or len(found) > MAX_STOPS or not all(isinstance(s, str) and s for s in found):
            raise _wrong("stop", value, f"a text or at most {MAX_STOPS} of them, none empty")
        return tuple(found)

    def usage_chunk(self) -> bool:
        """Whether a stream is to end with a chunk that tells its usage."""
        options = self.take("stream_options")
        if options is not None and not isinstance(options, dict):
            raise _wrong("stream_options", options, "an object")
        return bool((options or {}).get("include_usage"))

    def put_back(self, key: str, value: object) -> None:
        """Count a key that was taken as ignored after all."""
        self._left[key] = value

    def without_effect(self, neutral: Mapping[str, Any]) -> None:
        """Take the keys whose value changes nothing here; with another value they stay and count as ignored."""
        for key, value in neutral.items():
            if self._left.get(key) == value and not isinstance(self._left[key], bool):
                self.take(key)

    def ignored(self) -> tuple[str, ...]:
        """The keys that nobody took; one that cannot stand in a header is written as "?"."""
        return tuple(key if HEADER_SAFE.fullmatch(key) else "?" for key in sorted(self._left)[:MAX_IGNORED])


def stop_at(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first of `stops` begins in `text`; None where none of them occurs."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


def _wrong(key: str, value: object, wanted: str) -> ApiError:
    return ApiError(400, f"{key} is {json.dumps(value)[:80]}, wanted {wanted}", key)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
