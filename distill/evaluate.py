"""Run one system on the test rows with torch or scikit-learn, in a process of its own, and write what it answered.

Systems: student (base plus adapter, float32), base (untrained, with its best honest prompt), floor (see `floor`, on the
same teacher labels). Judges nothing: benchmarks compares.
"""

import dataclasses
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.annotate import accepted
from edgestill.distill.base import Base
from edgestill.distill.base_prompts import Answer, base_prompts, by_writing, labelled
from edgestill.distill.floor import Pair, fit_floor, floor_chances
from edgestill.runtime import decode, manifest
from edgestill.runtime.device import peak_rss_bytes, usable_cores
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.session import Session
from edgestill.runtime.task import Task, load_tokenizer

MAX_PROMPT_TOKENS = 4096
MOST_DEV_TEXTS = 32  # on which two prompts of the base are compared where it writes whole texts


@dataclass(frozen=True)
class System:
    """A loaded system: `answer` is asked about one filled text at a time."""

    answer: Callable[[str], Answer]
    bytes: int
    load_s: float
    note: str


def evaluate_system(name: str, student: Path, annotations: Path) -> None:
    """Run a system in a fresh process, so that its peak memory is its own; writes predictions-NAME.jsonl.

    Raises:
        EdgestillError: the process failed; its last line is in the message.
    """
    command = [sys.executable, "-m", "edgestill.distill.evaluate", name, str(student), str(annotations)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgestillError(f"evaluating {name} failed (exit {done.returncode}): {last}", "run train again")


def predictions_path(student: Path, name: str) -> Path:
    """Where `evaluate_system` writes."""
    return student / f"predictions-{name}.jsonl"


def main(name: str, student: Path, annotations: Path, base: Base, task: Task) -> None:
    """Load the system, answer every test row once, write the predictions."""
    pairs = {split: accepted(annotations, split) for split in ("train", "dev")}
    system = SYSTEMS[name](student, base, task, pairs)
    rows = list(manifest.read_jsonl(student / "test.jsonl"))
    system.answer(rows[0]["text"])  # warm-up: the first call pays for what later ones reuse
    records = [_record(name, row, system) for row in rows]
    manifest.write_jsonl(predictions_path(student, name), records)


def _record(name: str, row: dict[str, Any], system: System) -> dict[str, Any]:
    start = time.perf_counter()
    answer = system.answer(row["text"])
    latency_ms = (time.perf_counter() - start) * 1e3
    said = {key: value for key, value in dataclasses.asdict(answer).items() if value is not None}
    return {
        "system": name,
        "row_id": row["id"],
        **said,
        "latency_ms": latency_ms,
        "load_s": system.load_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "bytes": system.bytes,
        "note": system.note,
    }


def _student(student: Path, base: Base, task: Task, pairs: dict[str, list[Pair]]) -> System:
    """The trained student in float32: the weights before any quantization."""
    del pairs
    start = time.perf_counter()
    import torch

    torch.set_num_threads(usable_cores())
    tokenizer = load_tokenizer(student)
    if task.is_head:
        model, note = _encoder(student)
        answer = _by_labels(lambda ids: model.logits(ids).numpy(), tokenizer, task)
    else:
        model, session, note = _decoder(student, base)

        def fresh(ids: list[int]) -> Any:
            session.forget()  # as the device does: nothing is kept from the request before
            return session.logits(ids)

        answer = by_writing(session, tokenizer, task) if task.is_written else _by_labels(fresh, tokenizer, task)
    return System(answer, _weights_bytes(model), time.perf_counter() - start, note)


def _by_labels(logits_of: Callable[[list[int]], Any], tokenizer: Any, task: Task) -> Callable[[str], Answer]:
    """Answers by the labels' probabilities."""
    import torch

    def answer(text: str) -> Answer:
        with torch.inference_mode():
            logits = logits_of(task.encode(tokenizer, text))
        return labelled([float(p) for p in decode.task_probabilities(logits, task, text)], task)

    return answer


def _decoder(student: Path, base: Base) -> tuple[Any, Session, str]:
    """(model, session, what it is): base plus adapter, merged."""
    import torch
    from peft import PeftModel

    from edgestill.distill.student.causal import load_causal
    from edgestill.distill.torch_session import TorchSession

    model = PeftModel.from_pretrained(load_causal(base, torch.float32), str(student / "adapter")).merge_and_unload()
    return model, TorchSession(model, MAX_PROMPT_TOKENS), "float32, base plus adapter merged"


def _encoder(student: Path) -> tuple[Any, str]:
    """(model, what it is): the encoder as it was trained."""
    from edgestill.distill.student.encoder import load_encoder

    return load_encoder(student / "model"), "float32, encoder with classification head"


def _base(student: Path, base: Base, task: Task, pairs: dict[str, list[Pair]]) -> System:
    """The untrained base with instruction and label list; of two prompts the one that agrees more on the dev rows."""
    start = time.perf_counter()
    import torch

    from edgestill.distill.student.causal import load_causal
    from edgestill.distill.torch_session import TorchSession

    torch.set_num_threads(usable_cores())
    model = load_causal(base, torch.float32)
    session = TorchSession(model, MAX_PROMPT_TOKENS)
    load_s = time.perf_counter() - start
    candidates = dict(base_prompts(student, task, session))
    dev = pairs["dev"][:MOST_DEV_TEXTS] if task.is_written else pairs["dev"]
    best = max(candidates, key=lambda name: _agreement(candidates[name], dev))
    asked = "instruction" if task.is_written else "label list"
    note = f"float32, untrained, {best} prompt with the {asked}, whose constant part is computed once"
    return System(candidates[best], _weights_bytes(model), load_s, note)


def _floor(student: Path, base: Base, task: Task, pairs: dict[str, list[Pair]]) -> System:
    """TF-IDF and logistic regression on the teacher's labels; features and strength chosen on the dev rows."""
    del student, base
    model, note, _ = fit_floor(pairs["train"], pairs["dev"], task)
    saved = pickle.dumps(model)
    start = time.perf_counter()
    pickle.loads(saved)
    load_s = time.perf_counter() - start
    return System(lambda text: labelled(floor_chances(model, task, text), task), len(saved), load_s, note)


def _agreement(answer: Callable[[str], Answer], pairs: Sequence[Pair]) -> float:
    hits = sum(answer(row.text).label == annotation.label for row, annotation in pairs)
    return hits / len(pairs) if pairs else math.nan


def _weights_bytes(model: Any) -> int:
    """Bytes of all parameters, a tied one counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


SYSTEMS: dict[str, Callable[[Path, Base, Task, dict[str, list[Pair]]], System]] = {
    "student": _student,
    "base": _base,
    "floor": _floor,
}

if __name__ == "__main__":
    system_name, student_folder, annotations_folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    main(
        system_name,
        student_folder,
        annotations_folder,
        manifest.load(Base, student_folder / "base.json"),
        manifest.load(Task, student_folder / "task.json"),
    )
