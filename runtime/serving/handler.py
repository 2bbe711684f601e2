"""One connection: a request read within its limits, its route, its answer whole or as a stream, its errors.

The model is only touched by the desk's worker; a client that is slow, silent or gone costs its own thread.
"""

import contextlib
import hmac
import json
import select
import socket
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from itertools import chain
from typing import TYPE_CHECKING, Any

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.serving.answers import CHAT, TEXT, Piece, Reply
from edgestill.runtime.serving.chat import chat_pieces, read_chat
from edgestill.runtime.serving.completions import read_completion, text_pieces
from edgestill.runtime.serving.desk import Busy, Gone, Late
from edgestill.runtime.serving.wire import ApiError, Ask
from edgestill.runtime.serving.writing import written_pieces

if TYPE_CHECKING:
    from edgestill.runtime.serving.server import StudentServer

ROUTES = ("/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")
LEFT = 499  # the client closed the connection before the answer, as nginx counts it
LINGER_S = 1.0
LINGER_BYTES = 16 * 2**20


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: "StudentServer"
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "edgestill", ""
    chunked = False

    def setup(self) -> None:
        """Set the time that a client may take for a part."""
        super().setup()
        self.connection.settimeout(self.server.options.limits.idle_s)

    def finish(self) -> None:
        """Forget the connection."""
        self.server.reading.pop(self.connection, None)
        super().finish()

    def handle_one_request(self) -> None:
        """Read a request's head within the limit, and answer."""
        self.server.reading[self.connection] = time.monotonic() + self.server.options.limits.idle_s
        super().handle_one_request()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep no log: /metrics counts."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the standard library refuses in OpenAI's shape too."""
        self.close_connection = True
        self._send_json(code, ApiError(code, message or explain or HTTPStatus(code).phrase).body())

    def do_GET(self) -> None:
        """Answer a GET."""
        self._counted(self._get)

    def do_POST(self) -> None:
        """Answer a POST."""
        self._counted(self._post)

    def _counted(self, answer: Callable[[str], None]) -> None:
        self.server.reading.pop(self.connection, None)
        path = urllib.parse.urlsplit(self.path).path.rstrip("/")
        self.start, self.sent_status = time.monotonic(), LEFT
        with_body = "content-length" in self.headers or "transfer-encoding" in self.headers
        self.body_read = self.command == "GET" and not with_body
        self.close_connection |= self.command == "GET" and with_body  # unread, it would be the next request
        self.server.count_answering(1)
        try:
            self._checked(answer, path)
            if not self.body_read:
                self._linger()
        except (OSError, Gone):
            self.close_connection, self.sent_status = True, LEFT
        finally:
            route = path if path in ROUTES else "/v1/models" if path.startswith("/v1/models/") else "other"
            self.server.gauges.answered(route, self.sent_status, time.monotonic() - self.start)
            self.server.count_answering(-1)

    def _checked(self, answer: Callable[[str], None], path: str) -> None:
        """The answer, or what is wrong as an answer; after a stream has begun, as its last event."""
        try:
            self._let_in(path)
            answer(path)
            return
        except ApiError as error:
            refusal = error
        except Late:
            refusal = ApiError(504, f"no answer within {self.server.options.limits.request_s:g} s", code="timeout")
        except EdgestillError as error:
            refusal = ApiError(400, str(error), code="unusable_input")
        except (OSError, Gone):
            raise
        except Exception:
            traceback.print_exc()
            refusal = ApiError(500, "the server has failed; its error output says why", code="internal")
        if self.sent_status != LEFT:
            self._event(refusal.body())
            self.close_connection, self.sent_status = True, refusal.status
            return
        self.close_connection |= not self.body_read
        headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
        self._send_json(refusal.status, refusal.body(), headers)

    def _let_in(self, path: str) -> None:
        key = self.server.options.api_key
        said = self.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if key is not None and path != "/health" and not hmac.compare_digest(said.encode("latin-1"), key.encode()):
            raise ApiError(401, "a wrong API key, or none", code="invalid_api_key")
        if self.server.stopping:
            self.close_connection = True
            raise ApiError(503, "the server is stopping", code="stopping")

    def _get(self, path: str) -> None:
        server, student = self.server, self.server.student
        if path == "/health":
            facts = {"status": "ok", "model": server.name, "engine": student.artifact.engine}
            self._send_json(200, {**facts, "queue": server.desk.inside})
        elif path == "/metrics":
            self._send(200, server.gauges.text().encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif path == "/v1/models":
            self._send_json(200, {"object": "list", "data": self._models()})
        elif path.startswith("/v1/models/"):
            name = urllib.parse.unquote(path.removeprefix("/v1/models/"))
            found = next((model for model in self._models() if model["id"] == name), None)
            if found is None:
                raise ApiError(404, f"no model {name!r:.80} here", code="model_not_found")
            self._send_json(200, found)
        else:
            raise self._no_route(path)

    def _models(self) -> list[dict[str, Any]]:
        """The student, and the teacher's id for apps that look for it."""
        server = self.server
        names = [server.name, *([server.prompt.model] if server.prompt and server.prompt.model else [])]
        about = {"object": "model", "created": 0, "owned_by": "edgestill"}
        return [
            {"id": name, **about, **({"alias_of": server.name} if place else {})} for place, name in enumerate(names)
        ]

    def _post(self, path: str) -> None:
        if path not in ("/v1/chat/completions", "/v1/completions"):
            raise self._no_route(path)
        ask, server = Ask(self._body()), self.server
        if path == "/v1/completions":
            text = read_completion(ask, server.name)
            reply = self._reply(TEXT, text, text.logprobs is not None)
            self._answer(reply, text.stream, lambda: text_pieces(server.student, text), _ignored(text.ignored))
            return
        chat = read_chat(ask, server.student.task, server.prompt, server.name, server.options.strict)
        headers = {"x-edgestill-prompt": "matched" if chat.matched else "unmatched", **_ignored(chat.ignored)}
        server.gauges.add("unmatched", not chat.matched)
        reply = self._reply(CHAT, chat, chat.top_logprobs is not None)
        pieces = written_pieces if server.student.task.is_written else chat_pieces
        self._answer(reply, chat.stream, lambda: pieces(server.student, chat, server.options.abstain_below), headers)

    def _reply(self, kind: str, asked: Any, logprobs: bool) -> Reply:
        return Reply(kind, asked.model, self.server.fingerprint, asked.copies, logprobs, asked.usage_chunk)

    def _no_route(self, path: str) -> ApiError:
        if path in ROUTES:
            return ApiError(405, f"{path} does not take {self.command}", code="method_not_allowed")
        return ApiError(404, f"no {path[:80]!r} here; wanted one of {', '.join(ROUTES)}", code="not_found")

    def _body(self) -> bytes:
        """The request's body, whole, within the limits of size and time."""
        limits, length = self.server.options.limits, self.headers.get("content-length")
        if length is None or "transfer-encoding" in self.headers:
            raise ApiError(411, "send the body with Content-Length", code="length_required")
        if not (length.isascii() and length.isdigit()):
            raise ApiError(400, "Content-Length is no number", code="bad_length")
        if int(length) > limits.body_bytes:
            raise ApiError(413, f"the body has {length} bytes, at most {limits.body_bytes} are read", code="too_large")
        body, deadline = bytearray(), time.monotonic() + limits.idle_s
        while len(body) < int(length):
            self.connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = self.rfile.read1(int(length) - len(body))
            except TimeoutError:
                raise ApiError(408, f"no whole body within {limits.idle_s:g} s", code="slow") from None
            if not part:
                raise Gone
            body += part
        self.connection.settimeout(limits.idle_s)
        self.body_read = True
        return bytes(body)

    def _answer(self, reply: Reply, stream: bool, work: Callable[[], Iterator[Any]], headers: dict[str, str]) -> None:
        """Wait for the work, and send its answer whole or as it comes."""
        try:
            ticket = self.server.desk.take(work)
        except Busy:
            refusal = ApiError(429, f"{self.server.options.limits.waiting} requests wait already", code="queue_full")
            refusal.retry_after_s = 1
            raise refusal from None
        deadline = time.monotonic() + self.server.options.limits.request_s
        pieces = self._tallied(ticket.results(deadline, self._has_left))
        if not stream:
            self._send_json(200, reply.whole(pieces), headers)
            return
        first = next(pieces)  # what is refused, is refused before the stream begins
        self._begin_stream(headers)
        for chunk in reply.chunks(chain([first], pieces)):
            self._event(chunk)
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _tallied(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.totals is not None:
                self.server.gauges.add("prompt_tokens", piece.totals.prompt_tokens)
                self.server.gauges.add("completion_tokens", piece.totals.completion_tokens)
                self.server.gauges.add("abstained", int(piece.totals.facts.get("abstained", False)))
            yield piece

    def _has_left(self) -> bool:
        """Whether the client has closed the connection."""
        ready, _, _ = select.select([self.connection], [], [], 0)
        return bool(ready) and not self.connection.recv(1, socket.MSG_PEEK)

    def _send_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.sent_status = status
        self.send_response(status)
        closing = {"connection": "close"} if self.close_connection else {}
        fields = {"content-type": kind, "content-length": str(len(body)), **closing, **(headers or {})}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _begin_stream(self, headers: dict[str, str]) -> None:
        self.sent_status, self.chunked = 200, self.request_version >= "HTTP/1.1"
        self.close_connection |= not self.chunked  # before HTTP/1.1 a stream ends with its connection
        self.send_response(200)
        fields = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        length = {"transfer-encoding": "chunked"} if self.chunked else {"connection": "close"}
        for name, value in {**fields, **length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _event(self, value: object) -> None:
        self._chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n" if self.chunked else data)

    def _linger(self) -> None:
        """Read on for a moment: closing on unread bytes would take the answer away from who still sends."""
        deadline, left = time.monotonic() + LINGER_S, LINGER_BYTES
        with contextlib.suppress(OSError):  # who has left or goes on sending has been answered
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_S)
            while left > 0 and time.monotonic() < deadline and (part := self.connection.recv(65536)):
                left -= len(part)


def _ignored(keys: tuple[str, ...]) -> dict[str, str]:
    return {"x-edgestill-ignored": ", ".join(keys)} if keys else {}
