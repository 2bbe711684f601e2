"""Run one artifact of a bundle in a process of its own and keep every request. Compares nothing and judges nothing.

`python -m edgestill.benchmarks.measure BUNDLE ENGINE OUT.jsonl` is the child; `measure_artifact` starts it.
"""

import contextlib
import dataclasses
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.runtime import manifest
from edgestill.runtime.bundle import MANIFEST_NAME
from edgestill.runtime.device import describe_device, peak_rss_bytes, usable_cores
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.student import Student, load

MIN_ROUNDS = 3
MIN_REQUESTS = 300
MAX_REPEAT_S = 10.0
# What the engine imports when it opens a file: imported before the clock of the load starts.
ENGINE_LIBRARIES = {"onnx": "onnxruntime", "onnx-labels": "onnxruntime", "gguf": "llama_cpp"}
PROGRESS_MARK = "progress"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """One answered test row.

    `round` 0 is the pass over all rows in their order, whose answers are judged; later rounds are for the clock alone
    and have `probabilities` None. `latency_ms` is None when the text is the one just answered: the engine still holds
    its state, so that little was computed.
    """

    engine: str
    row_id: str
    round: int
    label: str
    probabilities: dict[str, float] | None
    latency_ms: float | None
    prompt_tokens: int
    student: str = "student"


@dataclass(frozen=True)
class Measurement:
    """One artifact of the bundle of `student` on this machine.

    `import_s` is from the start of the interpreter to all libraries imported; `load_s` from there to a model that can
    answer, its file in the page cache or not as the system had it; `psi_cpu_some_avg10` is the share of time in
    percent that some task waited for a processor, the higher of before and after.
    """

    inputs_sha256: str
    engine: str
    path: str
    quantization: str
    bytes: int
    threads: int
    import_s: float | None
    load_s: float
    first_request_ms: float
    rss_after_load_bytes: int | None
    peak_rss_bytes: int | None
    psi_cpu_some_avg10: float | None
    requests: tuple[Request, ...]
    student: str = "student"


def inputs_sha256(bundle: Path) -> str:
    """What a measurement depends on: the bundle and this machine with its versions."""
    return manifest.sha256_json([manifest.sha256_file(bundle / MANIFEST_NAME), dataclasses.asdict(describe_device())])


def joint_sha256(inputs: Sequence[str]) -> str:
    """What a report depends on: the inputs of its bundles, in their order; those of a single one stand for it."""
    return inputs[0] if len(inputs) == 1 else manifest.sha256_json(list(inputs))


def measure_artifact(
    bundle: Path, engine: str, out: Path, progress: Progress, called: str | None = None
) -> Measurement:
    """Measure the artifact of `engine` in a fresh process, or reuse `out` if it was made from the same inputs.

    Progress and errors name it as `called`, or as its engine.

    Raises:
        EdgestillError: the process failed; its last line is in the message.
    """
    if out.exists():
        kept = read_measurement(out)
        if kept.inputs_sha256 == inputs_sha256(bundle):
            return kept
    called = called or engine
    command = [sys.executable, "-m", "edgestill.benchmarks.measure", str(bundle), engine, str(out)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as talk:
        with _child(command, talk) as process:
            for line in process.stdout:
                words = line.split()
                if words[:1] == [PROGRESS_MARK]:
                    progress(f"bench {called}", int(words[1]), int(words[2]))
        if process.returncode:
            talk.seek(0)
            raise _failure(called, process.returncode, talk.read())
    return read_measurement(out)


@contextlib.contextmanager
def _child(command: list[str], talk: Any) -> Iterator[Any]:
    """The running process; it ends with this block, whatever happens in it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _failure(called: str, code: int, talk: str) -> EdgestillError:
    last = (talk.strip().splitlines() or ["no message"])[-1]
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            "SIGKILL is often the system running out of memory" if name == "SIGKILL" else "run the same command again"
        )
        return EdgestillError(f"measuring {called} was ended by {name}: {last}", hint)
    return EdgestillError(f"measuring {called} failed (exit {code}): {last}")


def read_measurement(path: Path) -> Measurement:
    """What the child wrote.

    Raises:
        EdgestillError: the file is missing or holds something else.
    """
    head, *rest = list(manifest.read_jsonl(path)) or [{}]
    try:
        fields = {key: value for key, value in head.items() if key != "kind"}
        requests = tuple(Request(**{k: v for k, v in row.items() if k != "kind"}) for row in rest)
        return Measurement(**fields, requests=requests)
    except TypeError as error:
        raise EdgestillError(f"{path} holds no measurement: {error}", "delete it and run the same command") from None


def write_measurement(path: Path, measurement: Measurement) -> None:
    """One line for the run, then one for each request."""
    manifest.write_jsonl(path, measurement_lines(measurement))


def measurement_lines(measurement: Measurement) -> list[dict[str, Any]]:
    """The lines of `write_measurement`."""
    head = {"kind": "run", **dataclasses.asdict(measurement)}
    requests = head.pop("requests")
    return [head, *({"kind": "request", **row} for row in requests)]


def main(bundle: Path, engine: str, out: Path) -> None:
    """Load, answer every test row, repeat for the clock, write the measurement."""
    with contextlib.suppress(ImportError):  # the session says in one sentence what is missing
        importlib.import_module(ENGINE_LIBRARIES[engine])
    import_s = process_age_s()
    rows = list(manifest.read_jsonl(bundle / "reference" / "test.jsonl"))
    waiting, threads = psi_cpu_some_avg10(), usable_cores()
    start = time.perf_counter()
    student = load(bundle, engine, threads)
    load_s = time.perf_counter() - start
    rss_after_load = rss_bytes()
    first = student.predict_text(rows[-1]["text"])
    requests = tuple(answer_rows(student, rows))
    artifact = student.artifact
    measurement = Measurement(
        inputs_sha256=inputs_sha256(bundle),
        engine=engine,
        path=artifact.path,
        quantization=artifact.quantization,
        bytes=artifact.bytes,
        threads=threads,
        import_s=import_s,
        load_s=load_s,
        first_request_ms=first.latency_ms,
        rss_after_load_bytes=rss_after_load,
        peak_rss_bytes=peak_rss_bytes(),
        psi_cpu_some_avg10=max((p for p in (waiting, psi_cpu_some_avg10()) if p is not None), default=None),
        requests=requests,
        student=student.bundle.student,
    )
    write_measurement(out, measurement)


def answer_rows(student: Student, rows: Sequence[dict[str, Any]]) -> Iterator[Request]:
    """Every row once in order, then whole rounds in shuffled order until there are enough requests or 10 s are over.

    A round is shuffled so that drift of the machine meets no row more than another. The row answered just before this
    call is the last one.
    """
    order, previous, done = list(rows), rows[-1]["text"], 0
    planned = max(MIN_ROUNDS * len(rows), MIN_REQUESTS)
    if len({row["text"] for row in rows}) == 1:
        planned = len(rows)  # every repeat would be answered from the state that the engine holds
    for number in range(-(-planned // len(rows))):
        if number == 1:
            repeats_start = time.perf_counter()
        for row in order:
            if number and time.perf_counter() - repeats_start > MAX_REPEAT_S:
                return
            yield _request(student, row, number, fresh=row["text"] != previous)
            previous, done = row["text"], done + 1
            print(PROGRESS_MARK, min(done, planned), planned, flush=True)
        random.Random(number).shuffle(order)


def _request(student: Student, row: dict[str, Any], number: int, fresh: bool) -> Request:
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
    )


def process_age_s() -> float | None:
    """Seconds since this process was started, to the kernel's clock tick (10 ms); None where /proc does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), counted after the name
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, IndexError, ValueError):
        return None


def rss_bytes() -> int | None:
    """Resident set of this process now (VmRSS), None where /proc does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


def psi_cpu_some_avg10(root: Path = Path("/")) -> float | None:
    """Percent of the last 10 s in which some task waited for a processor (pressure stall); None if unknown."""
    with contextlib.suppress(OSError, ValueError):
        for word in (root / "proc/pressure/cpu").read_text(encoding="utf-8").split():
            if word.startswith("avg10="):
                return float(word.removeprefix("avg10="))
    return None


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    except EdgestillError as mistake:
        print(mistake, file=sys.stderr)
        sys.exit(mistake.exit_code)
