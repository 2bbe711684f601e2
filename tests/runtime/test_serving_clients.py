"""Slow, silent, greedy and vanished clients: each ends at a limit, and nobody else notices."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx2 as httpx
import pytest

from edgestill.runtime.serving.desk import Busy, Desk, Gone, Late

BODY = {"messages": [{"role": "user", "content": "tomato number 1 next to a ruby"}]}
LABEL_ONLY = {**BODY, "response_format": {"type": "json_object", "schema": {"properties": {"label": {}}}}}
LONG = {"prompt": "the lime I saw", "max_tokens": 400, "stream": True, "logit_bias": {}}


def connect(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20)


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n".encode()
        + body
    )


def wait_until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def works(server: Any) -> bool:
    answer = httpx.post(f"{server.url}/chat/completions", json=LABEL_ONLY, timeout=30)
    return bool(json.loads(answer.json()["choices"][0]["message"]["content"])["label"] == "red")


@pytest.mark.parametrize(
    "half",
    [b"", b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"],
)
def test_a_client_that_sends_half_a_head_and_waits_is_hung_up_on(serve: Any, half: bytes) -> None:
    with serve(idle_s=0.5) as server, connect(server) as silent:
        silent.sendall(half)
        assert works(server)
        assert silent.recv(1) == b""


def test_a_client_that_drips_its_head_gets_no_more_time_than_one_that_waits(serve: Any) -> None:
    with serve(idle_s=0.5) as server, connect(server) as slow:
        start = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(200):
                slow.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - start < 5


def test_a_client_that_sends_half_a_body_is_told_so_in_time(serve: Any) -> None:
    with serve(idle_s=0.5) as server, connect(server) as slow:
        slow.sendall(post("/v1/chat/completions", b'{"messages"', 500))
        assert works(server)
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        wait_until(lambda: server._answering == 0)
        assert 'requests_total{route="/v1/chat/completions",status="408"} 1' in server.gauges.text()


def test_a_body_over_the_limit_is_refused_before_it_is_read(serve: Any) -> None:
    with serve(body_bytes=1000) as server:
        big = json.dumps({**BODY, "user": "x" * 4_000_000})
        refused = httpx.post(f"{server.url}/chat/completions", content=big)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
        with connect(server) as stubborn:  # it reads nothing before it has sent everything
            stubborn.sendall(post("/v1/chat/completions", b" " * 8_000_000))
            assert stubborn.recv(100).startswith(b"HTTP/1.1 413 ")
        with connect(server) as other:
            other.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 411 ")
        with connect(server) as other:
            other.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 400 ")
        assert works(server)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


HIDDEN = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize(
    "head", [f"content-length: {len(HIDDEN)}\r\n", "transfer-encoding: chunked\r\n", "content-length: 0\r\n" * 2]
)
@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/nothing", 404)])
def test_the_body_of_a_get_is_not_taken_for_the_next_request(serve: Any, head: str, path: str, status: int) -> None:
    with serve() as server, connect(server) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode() + HIDDEN)
        client.shutdown(socket.SHUT_WR)
        said = everything(client)
        assert said.startswith(f"HTTP/1.1 {status} ".encode())
        assert said.count(b"HTTP/1.1") == 1
        assert b"\r\nconnection: close\r\n" in said
        wait_until(lambda: server._answering == 0)
        assert f'status="{status}"}} 1' in server.gauges.text()


def test_a_client_of_http_1_0_gets_its_stream_without_chunks(serve: Any) -> None:
    body = json.dumps({**LONG, "max_tokens": 6}).encode()
    with serve() as server, connect(server) as old, connect(server) as new:
        for client, version in ((old, b"HTTP/1.0\r\nconnection: keep-alive"), (new, b"HTTP/1.1\r\nconnection: close")):
            client.sendall(post("/v1/completions", body).replace(b"HTTP/1.1", version))
        (old_head, _, plain), (new_head, _, chunked) = (everything(c).partition(b"\r\n\r\n") for c in (old, new))
    assert b"transfer-encoding" not in old_head
    assert b"connection: close" in old_head
    assert b"transfer-encoding: chunked" in new_head
    assert chunked.endswith(b"\r\n0\r\n\r\n")
    events = plain.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert len([json.loads(event.removeprefix("data: ")) for event in events[:-2]]) > 3


def test_a_client_that_leaves_during_a_stream_stops_the_work_for_it(serve: Any) -> None:
    with serve() as server:
        with connect(server) as leaving:
            leaving.sendall(post("/v1/completions", json.dumps(LONG).encode()))
            assert b"200 OK" in leaving.recv(4096)
        wait_until(lambda: server.desk.inside == server._answering == 0)
        assert 'requests_total{route="/v1/completions",status="499"} 1' in server.gauges.text()
        assert works(server)


def test_a_client_that_leaves_while_it_waits_is_not_answered(serve: Any) -> None:
    with serve() as server:
        begun, go_on = threading.Event(), threading.Event()
        server.desk.take(lambda: held_up(begun, go_on))
        begun.wait(5)
        with connect(server) as leaving:
            leaving.sendall(post("/v1/completions", json.dumps({**LONG, "stream": False}).encode()))
            wait_until(lambda: server.desk.inside == 2)
        wait_until(lambda: 'status="499"} 1' in server.gauges.text())
        go_on.set()
        wait_until(lambda: server.desk.inside == 0)
        assert "edgestill_completion_tokens_total 0" in server.gauges.text()


def test_a_client_that_does_not_read_its_stream_keeps_nobody_waiting(serve: Any) -> None:
    with serve(idle_s=8.0) as server, connect(server) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        lazy.sendall(post("/v1/completions", json.dumps({**LONG, "max_tokens": 200, "logprobs": 20, "n": 16}).encode()))
        wait_until(lambda: server.desk.inside == 1)
        wait_until(lambda: server.desk.inside == 0, within_s=60.0)
        assert server._answering == 1  # its thread still waits for it to read
        assert works(server)
        wait_until(lambda: server._answering == 0)
        assert 'requests_total{route="/v1/completions",status="499"} 1' in server.gauges.text()


def held_up(begun: threading.Event, go_on: threading.Event) -> Iterator[str]:
    begun.set()
    go_on.wait(20)
    yield "done"


def test_twenty_at_once_are_all_answered(serve: Any) -> None:
    with serve() as server, ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda _: works(server), range(20)))
        wait_until(lambda: server.desk.inside == server._answering == 0)
        assert 'requests_total{route="/v1/chat/completions",status="200"} 20' in server.gauges.text()


def test_who_finds_the_queue_full_is_told_to_come_back(serve: Any) -> None:
    with serve(waiting=0) as server:
        begun, go_on = threading.Event(), threading.Event()
        server.desk.take(lambda: held_up(begun, go_on))
        begun.wait(5)
        refused = httpx.post(f"{server.url}/chat/completions", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert "edgestill_queue 1" in server.gauges.text()
        go_on.set()
        wait_until(lambda: server.desk.inside == 0)
        assert works(server)


def test_an_answer_that_takes_too_long_is_given_up(serve: Any) -> None:
    with serve(request_s=0.5) as server:
        begun, go_on = threading.Event(), threading.Event()
        server.desk.take(lambda: held_up(begun, go_on))
        refused = httpx.post(f"{server.url}/chat/completions", json=BODY, timeout=20)
        assert (refused.status_code, refused.json()["error"]["type"]) == (504, "server_error")
        go_on.set()


def test_more_connections_than_allowed_are_closed_at_once(serve: Any) -> None:
    with serve(connections=2) as server:
        with connect(server), connect(server):
            wait_until(lambda: server._open == 2)
            with connect(server) as third:
                assert third.recv(1) == b""
        wait_until(lambda: server._open == 0)
        assert works(server)


def test_a_connection_that_gets_no_thread_gives_its_place_back(serve: Any, capfd: Any) -> None:
    with serve(connections=2) as server:
        before = threading.stack_size(2**46)  # no system has that much room for a thread
        try:
            for _ in range(3):
                with connect(server) as refused:
                    assert refused.recv(1) == b""
        finally:
            threading.stack_size(before)
        assert server._open == 0
        assert works(server)
    assert "can't start new thread" in capfd.readouterr().err


def test_a_stop_lets_answers_under_way_finish(serve: Any) -> None:
    with serve() as server, connect(server) as client:
        begun, go_on = threading.Event(), threading.Event()
        server.desk.take(lambda: held_up(begun, go_on))
        client.sendall(post("/v1/chat/completions", json.dumps(LABEL_ONLY).encode()))
        wait_until(lambda: server.desk.inside == 2)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        wait_until(lambda: server.stopping)
        go_on.set()
        stopping.join(20)
        assert server._answering == 0
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(OSError):
            connect(server)


def test_work_that_fails_says_so_and_the_next_is_done() -> None:
    def failing(error: Exception) -> Iterator[int]:
        yield 1
        raise error

    desk = Desk(waiting=1)
    for error, seen in ((ZeroDivisionError(), ZeroDivisionError), (BrokenPipeError("the disk"), RuntimeError)):
        results = desk.take(lambda error=error: failing(error)).results(time.monotonic() + 5, lambda: False)  # type: ignore[misc]
        assert next(results) == 1
        with pytest.raises(seen):  # an OSError of the model is not one of the connection
            next(results)
    assert list(desk.take(lambda: iter("ab")).results(time.monotonic() + 5, lambda: False)) == ["a", "b"]
    desk.close(5)


def test_work_may_pause_without_a_result_and_is_cancelled_there() -> None:
    desk, paused = Desk(waiting=1), threading.Event()

    def pausing() -> Iterator[int | None]:
        yield 1
        while True:
            paused.set()
            yield None

    assert list(desk.take(lambda: iter([None, 1, None, 2])).results(time.monotonic() + 5, lambda: False)) == [1, 2]
    results = desk.take(pausing).results(time.monotonic() + 5, lambda: False)
    assert next(results) == 1
    assert paused.wait(5)
    results.close()
    wait_until(lambda: desk.inside == 0, within_s=5.0)


def test_work_without_end_ends_when_nobody_takes_its_results() -> None:
    desk = Desk(waiting=0)
    results = desk.take(count).results(time.monotonic() + 5, lambda: False)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()  # as a handler does that could not write
    wait_until(lambda: desk.inside == 0, within_s=5.0)


def test_the_desk_is_in_order_and_full_when_it_says() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[int]()
    desk = Desk(waiting=3)
    desk.take(lambda: held_up(begun, go_on))
    begun.wait(5)
    tickets = [desk.take(lambda n=n: iter([done.append(n)])) for n in range(3)]  # type: ignore[misc]
    with pytest.raises(Busy):
        desk.take(lambda: iter(()))
    tickets[1].cancelled.set()
    with pytest.raises(Late):
        next(tickets[0].results(time.monotonic() - 1, lambda: False))
    with pytest.raises(Gone):
        next(tickets[2].results(time.monotonic() + 5, lambda: True))
    go_on.set()
    desk.close(5)
    assert desk.inside == 0
