"""One worker at the model and a short queue before it. What a client waits for never waits for that client.

Work is an iterator of results, and of None where it may be stopped between two. The worker runs it to its end whatever
the client does with the results, or until the client has gone; a slow reader holds its own connection and nothing else.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

LOOK_EVERY_S = 0.2


class Busy(Exception):
    """The queue is full."""


class Late(Exception):
    """The answer took longer than a request may."""


class Gone(Exception):
    """The client has left."""


@dataclass(frozen=True)
class _End:
    """What comes after the last result: the error that the work ended with, if any."""

    error: BaseException | None


@dataclass(eq=False)
class Ticket:
    """One request's place in the queue."""

    work: Callable[[], Iterator[Any]]
    cancelled: threading.Event = field(default_factory=threading.Event)
    _results: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)

    def results(self, deadline: float, gone: Callable[[], bool]) -> Iterator[Any]:
        """What the work yields, as it comes.

        Args:
            deadline: on `time.monotonic`'s clock.
            gone: whether the client has left; asked while nothing comes.

        Raises:
            Late, Gone: the work stops at its next result.
            Exception: what the work raised.
        """
        try:
            while True:
                if time.monotonic() > deadline:
                    raise Late
                try:
                    result = self._results.get(timeout=LOOK_EVERY_S)
                except queue.Empty:
                    if gone():
                        raise Gone from None
                    continue
                if not isinstance(result, _End):
                    yield result
                elif isinstance(result.error, OSError):  # of the model's files, not of the client's connection
                    raise RuntimeError(str(result.error)) from result.error
                elif result.error is not None:
                    raise result.error
                else:
                    return
        finally:
            self.cancelled.set()

    def run(self) -> None:
        """Work until the end or until it is cancelled; called by the worker."""
        error: BaseException | None = None
        try:
            results = self.work()
            while not self.cancelled.is_set() and (result := next(results, self)) is not self:
                if result is not None:
                    self._results.put(result)
            if self.cancelled.is_set() and hasattr(results, "close"):
                results.close()
        except BaseException as caught:
            error = caught
        self._results.put(_End(error))


class Desk:
    """The worker and its queue, in order of arrival."""

    def __init__(self, waiting: int) -> None:
        """`waiting` requests may wait beside the one being worked on."""
        self._limit = waiting + 1
        self._tickets: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._inside = 0
        self._worker = threading.Thread(target=self._serve, name="model", daemon=True)
        self._worker.start()

    @property
    def inside(self) -> int:
        """Requests that wait or are worked on."""
        return self._inside

    def take(self, work: Callable[[], Iterator[Any]]) -> Ticket:
        """Queue a request.

        Raises:
            Busy: as many wait as may.
        """
        with self._lock:
            if self._inside >= self._limit:
                raise Busy
            self._inside += 1
        ticket = Ticket(work)
        self._tickets.put(ticket)
        return ticket

    def close(self, wait_s: float) -> None:
        """Let the worker finish what is queued, for at most `wait_s`."""
        self._tickets.put(None)
        self._worker.join(wait_s)

    def _serve(self) -> None:
        while (ticket := self._tickets.get()) is not None:
            ticket.run()
            with self._lock:
                self._inside -= 1
