"""One stage of a measurement, in a process of its own, on the machine that is measured. Compares and judges nothing.

`python -m edgestill.benchmarks.stage NAME [BUNDLE ENGINE]` writes lines to stdout that begin with MARK and go on as a
JSON object; whatever else a machine says stands on lines of its own. It starts no process: a child of an emulated
process would run on the host.
"""

import argparse
import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgestill.benchmarks.gauges import memory
from edgestill.benchmarks.gauges.energy import find_meter
from edgestill.benchmarks.gauges.pages import drop_pages
from edgestill.benchmarks.gauges.watch import Watch, idle_w
from edgestill.benchmarks.measurement import Decoding, GoldenCheck, Memory, Request
from edgestill.runtime import decode, manifest
from edgestill.runtime.bundle import ONNX_LABELS, load_bundle, load_task
from edgestill.runtime.device import describe_device, peak_rss_bytes, usable_cores
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import load_tokenizer

MARK = "#edgestill-stage "
MIN_ROUNDS = 3
MIN_REQUESTS = 300
MAX_REPEAT_S = 10.0
DECODED_PROMPTS = 30
NEW_TOKENS = 16
MAX_DECODING_S = 10.0
# What the engine imports when it opens a file: imported before the clock of the load starts.
ENGINE_LIBRARIES = {"onnx": "onnxruntime", "onnx-labels": "onnxruntime", "gguf": "llama_cpp"}


def say(kind: str, **facts: Any) -> None:
    """One line for whoever started the stage."""
    print(MARK + json.dumps({"kind": kind, **facts}), flush=True)


def events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What `say` said, among lines of others; a banner without an end of line may stand before the mark."""
    for line in lines:
        _, mark, text = line.partition(MARK)
        if mark:
            with contextlib.suppress(json.JSONDecodeError):  # a line that was cut off
                yield json.loads(text)


def probe(wanted: argparse.Namespace) -> None:
    """Which machine this is, and which gauges it has."""
    del wanted
    meter = find_meter()
    say("result", device=dataclasses.asdict(describe_device()), energy_source=meter.source if meter else None)


def load_once(wanted: argparse.Namespace) -> None:
    """Open the files once and answer one row."""
    import_s = _import_engine(wanted.engine)
    rows = _test_rows(wanted.bundle)
    start = time.perf_counter()
    student = _load(wanted)
    load_s = time.perf_counter() - start
    first = student.predict_text(rows[-1]["text"])
    say("result", import_s=import_s, load_s=load_s, first_request_ms=first.latency_ms, cold_method=wanted.cold_method)


def task(wanted: argparse.Namespace) -> None:
    """Answer every test row, then repeat for the clock, with all gauges watched."""
    _import_engine(wanted.engine)
    rows, threads = _test_rows(wanted.bundle), wanted.threads or usable_cores()
    after_import = memory.resident_bytes()
    idle = idle_w()
    student = _load(wanted)
    student.predict_text(rows[-1]["text"])
    after_load, peak_load = memory.resident_bytes(), peak_rss_bytes()
    planned = requests_planned(rows, wanted.rounds)
    say("planned", requests=planned)
    with Watch() as watch:
        count = 0
        for request in answer_rows(student, rows, planned):
            say("request", **dataclasses.asdict(request))
            count += 1
    held = Memory(
        rss_after_import_bytes=after_import,
        rss_after_load_bytes=after_load,
        peak_rss_load_bytes=peak_load,
        peak_rss_bytes=peak_rss_bytes(),
        anonymous_after_bytes=memory.anonymous_bytes(),
        pss_after_bytes=memory.proportional_bytes(),
        cgroup_peak_bytes=memory.group_peak_bytes() if wanted.own_group else None,
        method="/proc/self" + (" and the control group" if wanted.own_group else "") if after_load else None,
    )
    say("result", threads=threads, memory=dataclasses.asdict(held), **watch.readings(idle, count))


def decoding(wanted: argparse.Namespace) -> None:
    """Write a few tokens after each of some test rows, whatever they say; nothing for a student that only labels."""
    from edgestill.runtime.student import ENGINES

    asked = load_task(wanted.bundle)
    if asked.is_head or wanted.engine == ONNX_LABELS:
        say("result", **dataclasses.asdict(Decoding(None, (), (), None, None)))
        return
    bundle = load_bundle(wanted.bundle)
    path = _artifact_path(wanted)
    longest = min(bundle.context_tokens, asked.max_text_tokens + asked.room_tokens + NEW_TOKENS)
    open_file: Any = ENGINES[wanted.engine]
    session = open_file(path, wanted.threads or usable_cores(), longest)
    prompts = [row["text"] for row in _test_rows(wanted.bundle)]
    say("result", **dataclasses.asdict(decode_prompts(session, asked, load_tokenizer(wanted.bundle), prompts)))


def decode_prompts(session: Any, asked: Any, tokenizer: Any, prompts: Sequence[str]) -> Decoding:
    """Time the tokens after each prompt; the first prompt warms up and is not kept.

    Stops after DECODED_PROMPTS prompts or MAX_DECODING_S, with two prompts at least.
    """
    ttft_ms: list[float] = []
    gaps_ms: list[float] = []
    prompt_tokens, prefill_s, decode_s, since = 0, 0.0, 0.0, time.perf_counter()
    for number, text in enumerate(_around(prompts, 1 + DECODED_PROMPTS)):
        if number > 1 and time.perf_counter() - since > MAX_DECODING_S:
            break
        session.forget()
        start = time.perf_counter()
        ids = asked.encode(tokenizer, text)
        ready = time.perf_counter()
        times = [time.perf_counter() for _ in decode.greedy(session, ids, [], NEW_TOKENS)]
        if not number or not times:
            since = time.perf_counter()
            continue
        ttft_ms.append((times[0] - start) * 1e3)
        gaps_ms += [(b - a) * 1e3 for a, b in itertools.pairwise(times)]
        prompt_tokens, prefill_s = prompt_tokens + len(ids), prefill_s + times[0] - ready
        decode_s += times[-1] - times[0]
        say("progress", done=number, planned=DECODED_PROMPTS)
    return Decoding(
        prompt_tokens=round(prompt_tokens / len(ttft_ms)) if ttft_ms else None,
        ttft_ms=tuple(ttft_ms),
        itl_ms=tuple(gaps_ms),
        prefill_tok_s=prompt_tokens / prefill_s if prefill_s else None,
        decode_tok_s=len(gaps_ms) / decode_s if decode_s else None,
    )


def offline(wanted: argparse.Namespace) -> None:
    """All test rows at once through `predict_many`, after one row that warms up."""
    _import_engine(wanted.engine)
    student, texts = _load(wanted), [row["text"] for row in _test_rows(wanted.bundle)]
    student.task = dataclasses.replace(student.task, text="{text}")  # test rows are filled in already
    student.predict_text(texts[-1])
    start = time.perf_counter()
    done = sum(1 for _ in student.predict_many(texts))
    say("result", rows_per_s=done / (time.perf_counter() - start))


def selfcheck(wanted: argparse.Namespace) -> None:
    """The bundle's golden rows, answered here."""
    found = _load(wanted).selfcheck()
    checked = GoldenCheck(found.rows, found.labels_changed, found.max_probability_difference)
    say("result", **dataclasses.asdict(checked))


STAGES = {
    "probe": probe,
    "load": load_once,
    "task": task,
    "decoding": decoding,
    "offline": offline,
    "selfcheck": selfcheck,
}


def requests_planned(rows: Sequence[dict[str, Any]], rounds: int | None = None) -> int:
    """How many requests are wanted: `rounds` passes over the rows, or as many as the percentiles want."""
    if rounds is not None:
        return rounds * len(rows)
    if len({row["text"] for row in rows}) == 1:
        return len(rows)  # every repeat would be answered from the state that the engine holds
    wanted = max(MIN_ROUNDS * len(rows), MIN_REQUESTS)
    return -(-wanted // len(rows)) * len(rows)


def answer_rows(student: Any, rows: Sequence[dict[str, Any]], planned: int) -> Iterator[Request]:
    """Every row once in order, then whole rounds in shuffled order until `planned` requests or 10 s are over.

    A round is shuffled so that drift of the machine meets no row more than another. The row answered just before this
    call is the last one; the latency of a text that was just answered is None, for the engine still holds its state.
    """
    order, previous = list(rows), rows[-1]["text"]
    repeats_start = 0.0
    for number in range(planned // len(rows)):
        if number == 1:
            repeats_start = time.perf_counter()
        for row in order:
            if number and time.perf_counter() - repeats_start > MAX_REPEAT_S:
                return
            yield _request(student, row, number, fresh=row["text"] != previous)
            previous = row["text"]
        random.Random(number).shuffle(order)


def _request(student: Any, row: dict[str, Any], number: int, fresh: bool) -> Request:
    answer = student.predict_text(row["text"])
    return Request(
        engine=student.artifact.engine,
        row_id=row["id"],
        round=number,
        label=answer.label,
        probabilities=None if number else answer.probabilities,
        latency_ms=answer.latency_ms if fresh else None,
        prompt_tokens=answer.prompt_tokens,
        student=student.bundle.student,
        confidence=None if number else answer.confidence,
        tokens_written=answer.tokens_written,
    )


def process_age_s() -> float | None:
    """Seconds since this process was started, to the kernel's clock tick (10 ms); None where /proc does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), counted after the name
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, IndexError, ValueError):
        return None


def _import_engine(engine: str) -> float | None:
    """Import all that the engine wants; seconds from the start of this process until then."""
    with contextlib.suppress(ImportError):  # the session says in one sentence what is missing
        importlib.import_module(ENGINE_LIBRARIES[engine])
    importlib.import_module("edgestill.runtime.student")
    return process_age_s()


def _load(wanted: argparse.Namespace) -> Any:
    from edgestill.runtime.student import load

    return load(wanted.bundle, wanted.engine, wanted.threads)


def _artifact_path(wanted: argparse.Namespace) -> Path:
    by_engine = {artifact.engine: artifact.path for artifact in load_bundle(wanted.bundle).artifacts}
    if wanted.engine not in by_engine:
        raise UsageError(f"engine {wanted.engine!r} is not in this bundle, it has {sorted(by_engine)}")
    return Path(wanted.bundle / by_engine[wanted.engine])


def _test_rows(bundle: Path) -> list[dict[str, Any]]:
    return list(manifest.read_jsonl(bundle / "reference" / "test.jsonl"))


def _around(items: Sequence[str], count: int) -> Iterator[str]:
    """`count` items, beginning again at the end."""
    return (items[number % len(items)] for number in range(count))


def main(arguments: Sequence[str]) -> None:
    """Run the stage that is named first."""
    parser = argparse.ArgumentParser(prog="python -m edgestill.benchmarks.stage")
    parser.add_argument("name", choices=STAGES)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("engine", choices=ENGINE_LIBRARIES, nargs="?")
    parser.add_argument("--threads", type=int, help="default: the cores this process may run on")
    parser.add_argument("--rounds", type=int, help="passes over the test rows; default: what the percentiles want")
    parser.add_argument("--cold", action="store_true", help="drop the artifact's pages from the cache first")
    parser.add_argument("--own-group", action="store_true", help="the control group holds this process alone")
    wanted = parser.parse_args(arguments)
    if wanted.name != "probe" and wanted.engine is None:
        parser.error(f"{wanted.name} wants BUNDLE and ENGINE")
    wanted.cold_method = drop_pages(_artifact_path(wanted)) if wanted.cold and wanted.engine else None
    STAGES[wanted.name](wanted)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except EdgestillError as mistake:
        print(mistake, file=sys.stderr)
        sys.exit(mistake.exit_code)
