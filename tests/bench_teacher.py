"""How fast the teacher engine asks a local server, beside a bare loop over the `openai` client in the same run.

`make bench-teacher` prints a table and, as its last line, one JSON object. Each measurement is a process of its own.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.open import open_teacher
from edgestill.runtime.device import peak_rss_bytes

LATENCY_S = 0.3
LABELS = ["lights", "heating", "music", "timer", "red"]


def recipe(url: str, concurrency: int) -> Recipe:
    teacher = {"kind": "openai", "model": "scripted", "base_url": url, "concurrency": concurrency, "smoke_rows": 0}
    return Recipe.model_validate(
        {
            "name": "bench",
            "task": {"instruction": "What does the speaker want?", "labels": LABELS},
            "data": {"pool": "unused.jsonl"},
            "teacher": teacher,
            "budget": {"tokens": 10**12},
        }
    )


def rows(count: int) -> Iterator[Row]:
    return (Row(f"{i:016x}", f"utterance number {i}: please do something about the lamp", None, "train")
            for i in range(count))  # fmt: skip


def engine(url: str, count: int, concurrency: int) -> None:
    """The engine: cache, reservations, limits, parse; everything durable."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGESTILL_CACHE"] = folder
        teacher = open_teacher(recipe(url, concurrency), Path("recipe.yaml"), Path(folder), ())
        times: list[float] = []
        before = measured()
        stopped = teacher.ask(rows(count), lambda done: times.append(time.perf_counter()))
        after = measured()
        assert stopped is None, stopped
        assert teacher.spending().requests == count
        teacher.close()
    tell(before, after, times)


def bare(url: str, count: int, concurrency: int) -> None:
    """What anyone would write: a semaphore and `chat.completions.create` with the same body, answers thrown away."""
    import httpx2
    import openai

    from edgestill.distill.teacher.prompt import Prompter, first_dialect

    wanted = recipe(url, concurrency)
    prompter = Prompter(wanted, "host", "scripted", first_dialect(wanted))

    async def run() -> None:
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        http = openai.DefaultAsyncHttpxClient(limits=limits)
        client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=http)
        waiting = rows(count)

        async def work() -> None:
            for row in waiting:
                answer = await client.chat.completions.create(**prompter.first(row.text).body)
                assert json.loads(str(answer.choices[0].message.content))["label"] in LABELS
                times.append(time.perf_counter())

        await asyncio.gather(*(work() for _ in range(concurrency)))
        await client.close()

    times: list[float] = []
    before = measured()
    asyncio.run(run())
    tell(before, measured(), times)


def measured() -> tuple[float, float, int]:
    """Wall seconds, CPU seconds of this process, peak bytes."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime, peak_rss_bytes()


def tell(before: tuple[float, float, int], after: tuple[float, float, int], times: list[float]) -> None:
    """The rate over the whole run, and between a tenth and nine tenths of it: without the first connections."""
    count, seconds = len(times), after[0] - before[0]
    low, high = count // 10, count - count // 10
    facts = {"requests_per_s": count / seconds, "cpu_ms_per_request": (after[1] - before[1]) / count * 1e3}
    facts["sustained_per_s"] = (high - low) / (times[high] - times[low])
    print(json.dumps(facts | {"peak_rss_bytes": after[2], "rss_before_bytes": before[2]}))


def measure(what: str, url: str, count: int, concurrency: int) -> dict[str, Any]:
    command = [sys.executable, __file__, what, url, str(count), str(concurrency)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def main(count: int, big: int) -> None:
    """64 and 200 in flight, engine and bare client in turns; then memory over few and many rows."""
    command = [sys.executable, str(Path(__file__).parent / "scripted_server.py"), "--latency", str(LATENCY_S)]
    fast = [*command[:-1], "0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        runs = []
        for concurrency in (64, 200):
            for what in ("bare", "engine", "bare", "engine"):
                facts = measure(what, url, count, concurrency) | {"what": what, "in_flight": concurrency}
                runs.append(facts)
                allowed = concurrency / LATENCY_S
                print(f"{what:<7} {concurrency:>4} in flight  {facts['sustained_per_s']:>6.1f}/s of {allowed:.1f}"
                      f"  {facts['cpu_ms_per_request']:.2f} ms CPU a request", flush=True)  # fmt: skip
        served = json.load(urllib.request.urlopen(url.replace("/v1", "/stats")))
        server.kill()
    with subprocess.Popen(fast, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        memory = {str(n): measure("engine", url, n, 64) for n in (1_000, big)}
        server.kill()
    engines = [run for run in runs if run["what"] == "engine"]
    best = {c: max(run["sustained_per_s"] for run in engines if run["in_flight"] == c) for c in (64, 200)}
    whole = max(run["requests_per_s"] for run in engines if run["in_flight"] == 64)
    cpu = {w: min(r["cpu_ms_per_request"] for r in runs if r["what"] == w and r["in_flight"] == 64)
           for w in ("bare", "engine")}  # fmt: skip
    peaks = {n: facts["peak_rss_bytes"] for n, facts in memory.items()}
    print(json.dumps({
        "share_of_allowed_at_64": best[64] / (64 / LATENCY_S), "share_with_start_up": whole / (64 / LATENCY_S),
        "requests_per_s_at_200": best[200],
        "cpu_ms_per_request": cpu, "cpu_ms_beyond_bare_client": cpu["engine"] - cpu["bare"],
        "peak_rss_bytes_by_rows": peaks, "rate_without_latency": memory[str(big)]["requests_per_s"],
        "latency_s": LATENCY_S, "requests_each": count, "in_flight_max_seen": served["in_flight_max"],
        "cores": os.cpu_count(),
    }))  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("engine", "bare"):
        {"engine": engine, "bare": bare}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--requests", type=int, default=2_000)
        parser.add_argument("--many-rows", type=int, default=100_000)
        arguments = parser.parse_args()
        main(arguments.requests, arguments.many_rows)
