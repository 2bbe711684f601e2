"""What the server counts, and the text that Prometheus reads (exposition format 0.0.4)."""

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
HELP = {
    "prompt_tokens": "Prompt tokens computed.",
    "completion_tokens": "Tokens answered; a label is one.",
    "unmatched": "Chat requests that were not asked as the teacher was.",
    "abstained": "Answers below the threshold to abstain at.",
}


class Gauges:
    """Counters of one server. Safe from several threads."""

    def __init__(self, queued: Callable[[], int]) -> None:
        """`queued` tells how many requests wait or are worked on."""
        self._queued = queued
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_S) + 1))
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter(dict.fromkeys(HELP, 0))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """One request, from its first line to the last byte of its answer."""
        with self._lock:
            self._requests[route, status] += 1
            self._buckets[route][bisect_left(BUCKETS_S, seconds)] += 1
            self._seconds[route] += seconds

    def add(self, name: str, count: int = 1) -> None:
        """Raise the counter `name`, one of HELP."""
        with self._lock:
            self._counts[name] += count

    def text(self) -> str:
        """Everything, as Prometheus scrapes it."""
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests by route and status; 499: the client left.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'edgestill_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("request_seconds", "histogram", "Wall time of a request.")
        for route, buckets in sorted(self._buckets.items()):
            total = 0
            for limit, count in zip((*map(str, BUCKETS_S), "+Inf"), buckets, strict=True):
                total += count
                yield f'edgestill_request_seconds_bucket{{route="{route}",le="{limit}"}} {total}'
            yield f'edgestill_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}'
            yield f'edgestill_request_seconds_count{{route="{route}"}} {total}'
        for name, text in HELP.items():
            yield from _head(f"{name}_total", "counter", text)
            yield f"edgestill_{name}_total {self._counts[name]}"
        yield from _head("queue", "gauge", "Requests that wait for the model or are worked on.")
        yield f"edgestill_queue {self._queued()}"


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP edgestill_{name} {text}", f"# TYPE edgestill_{name} {kind}"
