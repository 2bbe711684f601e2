"""What the engine adds to the bare `openai` client: CPU by the process's own clock, and memory over many rows.

Rates are for `make bench-teacher` on a quiet machine; here they are only kept from falling apart.
"""

from collections.abc import Iterator

import bench_teacher
import pytest
from scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ScriptedServer(latency_s=bench_teacher.LATENCY_S) as server:
        yield server.url


def test_the_engine_costs_less_than_a_millisecond_of_cpu_a_request_beyond_the_bare_client(url: str) -> None:
    bare, engine = (bench_teacher.measure(what, url, 900, 64) for what in ("bare", "engine"))
    assert engine["cpu_ms_per_request"] - bare["cpu_ms_per_request"] <= 1.0
    assert engine["sustained_per_s"] >= 0.75 * bare["sustained_per_s"]


def test_memory_does_not_grow_with_the_rows() -> None:
    with ScriptedServer() as server:
        few, many = (bench_teacher.measure("engine", server.url, rows, 64) for rows in (1_000, 8_000))
    assert many["peak_rss_bytes"] - few["peak_rss_bytes"] < 8_000_000
