"""How fast a task request is answered, beside llama-cpp-python, onnxruntime-genai and transformers at the same weights.

Usage: bench_runtime.py [--bundle FOLDER ...] [--rows 60] [--rounds 5] [--threads 1]

Every way of answering is a process of its own (`runtime_peers`) and gets the same token ids; they take turns, round by
round, so that noise hits all alike. Ratios are of medians over all requests. Prints a table and, as its last line, one
JSON object; the whole is kept in benchmarks/results/runtime/NAME-LABELS-THREADS.json. Exit code 2 when a peer's answers
are not at least 98 % ours.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "runtime"
PEERS = Path(__file__).parent / "runtime_peers.py"
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-genai", "llama-cpp-python", "torch", "transformers")
BARS = {"llama_cpp_python": 3.0, "onnxruntime_genai": 3.0, "transformers": 10.0}
# what a ratio's numerator is: the fastest of these; the first is what the bar names
OTHERS = {
    "llama_cpp_python": ("llama-cpp-python, grammar",),
    "llama_cpp_python_free": ("llama-cpp-python, free",),
    "onnxruntime_genai": ("onnxruntime-genai, free", "onnxruntime-genai, guided"),
    "transformers": ("transformers float32", "transformers bfloat16"),
}
# whose loop over the same file ours must not be slower than
SAME_FILE = {"edgestill onnx, all": "onnxruntime-genai, free", "edgestill gguf, all": "llama-cpp-python, free"}
MIN_EQUAL = 0.98
FREE_TOKENS = 32


class Turn:
    """One entrant's process."""

    def __init__(self, name: str, bundle: Path, threads: int, job: Path) -> None:
        command = [sys.executable, str(PEERS), name, str(bundle), str(threads), str(job)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment)  # fmt: skip
        self.name = name
        self.writes: bool = self._read()["writes"]
        self.answers: list[str] = []
        self.said: list[int] = []
        self.times: dict[str, list[float]] = {}

    def take(self, what: str) -> None:
        """All prompts, or free text, once."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        found = self._read()
        if what == "label":
            self.answers = found["answers"]
        else:
            self.said = found["answers"][0]
        for clock in ("wall_ms", "processor_ms"):
            self.times.setdefault(f"{what} {clock}", []).extend(found[clock])

    def median(self, key: str) -> float | None:
        """Over all requests of all rounds."""
        return statistics.median(self.times[key]) if key in self.times else None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} stopped by itself; run tests/runtime_peers.py to see why")
        return dict(json.loads(line))


def names(bundle: Path) -> list[str]:
    """The entrants that this bundle has files for."""
    from runtime_peers import PEERS as known

    from edgestill.runtime.bundle import load_bundle

    engines = {artifact.engine for artifact in load_bundle(bundle).artifacts}
    needed = {"llama": "gguf", "onnxr": "onnx", "trans": "onnx"}

    def engine(name: str) -> str:
        return name.removeprefix("edgestill ").split(",")[0] if name.startswith("edge") else needed[name[:5]]

    return [name for name in known if engine(name) in engines]


def write_job(bundle: Path, rows: int, path: Path) -> dict[str, Any]:
    """Token ids of the first test rows, and of a prompt for free text; what is said about them."""
    from edgestill.runtime import manifest
    from edgestill.runtime.bundle import load_task
    from edgestill.runtime.task import load_tokenizer

    task, tokenizer = load_task(bundle), load_tokenizer(bundle)
    texts = [row["text"] for row in manifest.read_jsonl(bundle / "reference" / "test.jsonl")][:rows]
    prompts = [task.encode(tokenizer, text) for text in texts]
    start = [i for ids in prompts for i in ids][:32]
    manifest.write_json(path, {"prompts": prompts, "start": start, "new_tokens": FREE_TOKENS})
    written = [len(tokenizer.encode(label.completion, add_special_tokens=False).ids) for label in task.labels]
    return {"labels": len(task.labels), "rows": len(prompts), "prompt_tokens": statistics.mean(map(len, prompts)),
            "label_tokens": statistics.mean(written)}  # fmt: skip


def bandwidth_bytes_per_s(threads: int) -> float:
    """Bytes a second read by a sum over a buffer far larger than any cache, best of five."""
    parts = np.array_split(np.ones(1 << 26, np.float32), threads)
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=np.add.reduce, args=(part,)) for part in parts]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best


def pressure() -> float | None:
    """Share of the last 10 s in which something waited for a processor, %; None where the kernel does not tell."""
    try:
        return float(Path("/proc/pressure/cpu").read_text(encoding="utf-8").split("avg10=")[1].split()[0])
    except (OSError, IndexError):
        return None


def measured(bundle: Path, rows: int, rounds: int, threads: int) -> dict[str, Any]:
    """All entrants on one bundle."""
    from edgestill.runtime.bundle import load_bundle
    from edgestill.runtime.device import describe_device, package_versions

    with tempfile.TemporaryDirectory() as folder:
        asked = write_job(bundle, rows, Path(folder) / "job.json")
        turns = [Turn(name, bundle, threads, Path(folder) / "job.json") for name in names(bundle)]
        stalls = []
        for place in range(rounds):
            for turn in turns[place % len(turns) :] + turns[: place % len(turns)]:
                turn.take("label")
                if turn.writes:
                    turn.take("write")
            stalls.append(pressure())
            print(f"round {place + 1} of {rounds}", file=sys.stderr, flush=True)
        for turn in turns:
            turn.stop()
    bandwidth, device = bandwidth_bytes_per_s(threads), describe_device()
    sizes = {artifact.engine: artifact.bytes for artifact in load_bundle(bundle).artifacts}
    conditions = {
        "bundle": load_bundle(bundle).name, **asked, "rounds": rounds, "threads": threads, "cpu": device.cpu_model,
        "isa": device.isa, "cores_usable": device.cores_usable, "psi_cpu_some_avg10_percent": stalls,
        "read_bytes_per_s": bandwidth, "versions": package_versions(PACKAGES),
    }  # fmt: skip
    return summary({turn.name: turn for turn in turns}, sizes, bandwidth) | {"conditions": conditions}


def summary(turns: dict[str, Turn], sizes: dict[str, int], bandwidth: float) -> dict[str, Any]:
    """Medians, ratios on both clocks, equal answers, free text on the same file."""
    best = next(name for name in ("edgestill onnx-labels, all", "edgestill onnx, all") if name in turns)
    same = {name: share(turn.answers, turns[twin(name, best)].answers) for name, turn in turns.items()}
    medians = {
        name: {key: turn.median(key) for key in ("label wall_ms", "label processor_ms", "write wall_ms")}
        | {"answers_equal": same[name]}
        for name, turn in turns.items()
    }
    free = {}
    for name, other in SAME_FILE.items():
        if name in turns and other in turns:
            mine, theirs = (turns[n].median("write processor_ms") or 0.0 for n in (name, other))
            token_s = (turns[name].median("write wall_ms") or 0.0) / 1e3 / FREE_TOKENS
            free[name] = {"times_as_fast": theirs / mine, "same_tokens": share(turns[name].said, turns[other].said),
                          "share_of_bandwidth": sizes[name.split()[1].rstrip(",")] / token_s / bandwidth}  # fmt: skip
    clocks = {"ratios": "label wall_ms", "ratios_processor": "label processor_ms"}
    ratios = {said: {key: ratio(turns, others, best, clock) for key, others in OTHERS.items()}
              for said, clock in clocks.items()}  # fmt: skip
    return {**ratios, "bars": BARS, "ours": best, "free_text": free, "medians": medians}


def twin(name: str, best: str) -> str:
    """Our entrant over the weights and kernels of `name`: of a GGUF file ours of that file."""
    return "edgestill gguf, all" if "llama" in name or "gguf" in name else best


def ratio(turns: dict[str, Turn], others: tuple[str, ...], best: str, clock: str) -> float | None:
    """How many times as long the fastest of `others` takes."""
    found = [turns[name].median(clock) for name in others if name in turns]
    mine = turns[best].median(clock)
    return min(t for t in found if t) / mine if found and mine else None


def least(found: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Of several bundles the lowest of each ratio; None where one is not known."""
    each = {key: [one["ratios"][key] for one in found.values()] for key in OTHERS}
    return {key: None if None in values else min(values) for key, values in each.items()}


def share(a: list[Any], b: list[Any]) -> float:
    """Of places with the same entry."""
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def table(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'':<28}{'ms':>9}{'CPU ms':>9}{'equal %':>9}"]
    for name, row in found["medians"].items():
        numbers = (row["label wall_ms"], row["label processor_ms"], 100 * row["answers_equal"])
        lines.append(f"{name:<28}" + "".join(f"{number:>9.1f}" for number in numbers))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, nargs="+", default=[ROOT / "runs" / "demo" / "bundle"])
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    last, equal = {}, True
    for bundle in asked.bundle:
        found = measured(bundle, asked.rows, asked.rounds, asked.threads)
        conditions = found["conditions"]
        name = f"{conditions['bundle']}-{conditions['labels']}-{asked.threads}"
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: ours is {found['ours']}\n{table(found)}", flush=True)
        low = [key for key, row in found["medians"].items() if row["answers_equal"] < MIN_EQUAL]
        for key in low:
            print(f"{key} answers otherwise than ours on more than {1 - MIN_EQUAL:.0%} of the rows")
        equal = equal and not low
        last[name] = found
    print(json.dumps(last | {"ratios": least(last)} if len(last) > 1 else found))
    sys.exit(0 if equal else 2)


if __name__ == "__main__":
    main()
