"""The server around the routes: its address, its limits, its threads, and a stop that lets answers finish.

The standard library's, with a thread a connection; what a request is and how it is answered is the handler's.
"""

import socket
import socketserver
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.serving.desk import Desk
from edgestill.runtime.serving.gauges import Gauges
from edgestill.runtime.serving.handler import Handler
from edgestill.runtime.serving.teacher_prompt import load_teacher_prompt
from edgestill.runtime.student import Student


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server.

    `idle_s` is how long a connection may wait for a request, a client take to send one or to read a part of its answer;
    `request_s` how long an answer may take, `waiting` how many requests may wait for the model.
    """

    body_bytes: int = 2**20
    waiting: int = 32
    connections: int = 256
    request_s: float = 60.0
    idle_s: float = 30.0


@dataclass(frozen=True)
class Options:
    """How to serve. `port` 0 is any free one; `api_key` None lets everybody in; `strict` refuses other prompts.

    Answers whose confidence is lower than `abstain_below`, 0 to 1, are marked as abstained.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    strict: bool = False
    abstain_below: float | None = None
    limits: Limits = Limits()


class StudentServer(ThreadingHTTPServer):
    """Serves one student. Run `serve_forever` in a thread of its own and end with `stop`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, student: Student, options: Options) -> None:
        """Bind the address.

        Raises:
            EdgestillError: the address is taken or not ours.
        """
        self.student, self.options = student, options
        self.prompt = load_teacher_prompt(student.folder)
        self.name = student.bundle.name
        self.fingerprint = "edgestill-" + student.bundle.chain.get("student_sha256", "")[:12]
        self.address_family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        self.reading: dict[socket.socket, float] = {}
        self._open, self._answering, self._lock = 0, 0, threading.Lock()
        self.stopping = False
        try:
            super().__init__((options.host, options.port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EdgestillError(
                f"cannot listen on {options.host} port {options.port}: {reason}",
                "name another with --port, 0 for any free one, or stop what listens there",
            ) from None
        self.desk = Desk(options.limits.waiting)
        self.gauges = Gauges(lambda: self.desk.inside)

    @property
    def url(self) -> str:
        """What an app takes as its base_url."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"http://{host}:{self.server_address[1]}/v1"

    def server_bind(self) -> None:
        """Bind without asking a name server who we are."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.options.host, int(self.server_address[1])

    def service_actions(self) -> None:
        """Hang up on who has not sent a request in time; called twice a second."""
        now = time.monotonic()
        for connection, deadline in list(self.reading.items()):
            if now > deadline:
                self.reading.pop(connection, None)
                hang_up(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, unless too many are open."""
        with self._lock:
            full = self._open >= self.options.limits.connections
            self._open += not full
        if full:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started for it
            self._give_place_back()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """A connection's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._give_place_back()

    def _give_place_back(self) -> None:
        with self._lock:
            self._open -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's own
        """Say nothing of clients that leave; print what is our own fault."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()

    def count_answering(self, change: int) -> None:
        """Keep count of the requests that are being answered."""
        with self._lock:
            self._answering += change

    def stop(self, grace_s: float = 10.0) -> None:
        """Take no more connections, let answers under way finish for `grace_s`, close."""
        self.stopping = True
        self.shutdown()
        self.server_close()
        deadline = time.monotonic() + grace_s
        while self._answering and time.monotonic() < deadline:
            time.sleep(0.02)
        self.desk.close(max(0.0, deadline - time.monotonic()))


def hang_up(connection: socket.socket) -> None:
    """End a connection both ways; whoever reads from it sees its end."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
