"""Run one system on the test rows with torch or scikit-learn, in a process of its own, and write what it answered.

Systems: student (base plus adapter, float32), base (untrained, with its best honest prompt), floor (see `floor`, on the
same teacher labels). Judges nothing: benchmarks compares.
"""

import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.distill.annotate import accepted
from edgestill.distill.base import Base
from edgestill.distill.floor import Pair, fit_floor
from edgestill.runtime import decode, manifest
from edgestill.runtime.device import peak_rss_bytes, usable_cores
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.task import Task, load_tokenizer

MAX_PROMPT_TOKENS = 4096

Predict = Callable[[str], list[float]]


@dataclass(frozen=True)
class System:
    """A loaded system: `predict` maps a text to probabilities over the task's labels."""

    predict: Predict
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
    system.predict(rows[0]["text"])  # warm-up: the first call pays for what later ones reuse
    records = [_record(name, row, system, task) for row in rows]
    manifest.write_jsonl(predictions_path(student, name), records)


def _record(name: str, row: dict[str, Any], system: System, task: Task) -> dict[str, Any]:
    start = time.perf_counter()
    chances = system.predict(row["text"])
    latency_ms = (time.perf_counter() - start) * 1e3
    return {
        "system": name,
        "row_id": row["id"],
        "label": task.written(task.chosen(chances)),
        "probabilities": dict(zip(task.label_names, chances, strict=True)),
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
    logits_of, model, note = (_encoder if task.is_head else _decoder)(student, base)
    tokenizer = load_tokenizer(student)

    def predict(text: str) -> list[float]:
        with torch.inference_mode():
            logits = logits_of(task.encode(tokenizer, text))
        return [float(p) for p in decode.task_probabilities(logits, task)]

    return System(predict, _weights_bytes(model), time.perf_counter() - start, note)


def _decoder(student: Path, base: Base) -> tuple[Callable[[list[int]], Any], Any, str]:
    """(token ids -> logits, model, what it is): base plus adapter, merged."""
    import torch
    from peft import PeftModel

    from edgestill.distill.student.causal import load_causal
    from edgestill.distill.torch_session import TorchSession

    model = PeftModel.from_pretrained(load_causal(base, torch.float32), str(student / "adapter")).merge_and_unload()
    session = TorchSession(model, MAX_PROMPT_TOKENS)

    def logits_of(ids: list[int]) -> Any:
        session.forget()  # as the device does: nothing is kept from the request before
        return session.logits(ids)

    return logits_of, model, "float32, base plus adapter merged"


def _encoder(student: Path, base: Base) -> tuple[Callable[[list[int]], Any], Any, str]:
    """(token ids -> logits, model, what it is): the encoder as it was trained."""
    del base
    from edgestill.distill.student.encoder import load_encoder

    model = load_encoder(student / "model")
    return lambda ids: model.logits(ids).numpy(), model, "float32, encoder with classification head"


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
    candidates = dict(_base_predictors(student, task, session))
    best = max(candidates, key=lambda name: _agreement(candidates[name], task, pairs["dev"]))
    note = f"float32, untrained, {best} prompt with the label list, whose constant part is computed once"
    return System(candidates[best], _weights_bytes(model), load_s, note)


def _base_predictors(student: Path, task: Task, session: Any) -> Iterator[tuple[str, Predict]]:
    """(name, predictor) for each prompt style; labels are compared through the trie, end of sequence included."""
    tokenizer = load_tokenizer(student)
    tokenizer.encode_special_tokens = False  # the chat template's own markers must be read as such
    listing = "\n".join(f"{label.name}: {label.description}".removesuffix(": ") for label in task.labels)
    head = f"{task.instruction}\nAnswer with exactly one of these labels.\n{listing}\n\nText: "
    template = _chat_template(student)
    if template is not None:
        before, after = template(head + "\0").split("\0")
        yield "chat", _trie_predictor(session, tokenizer, task, before, after, "")
    yield "plain", _trie_predictor(session, tokenizer, task, head, "\nLabel:", " ")


def _trie_predictor(session: Any, tokenizer: Any, task: Task, before: str, after: str, blank: str) -> Predict:
    def ids_of(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    bos = [] if task.bos_token_id is None else [task.bos_token_id]
    answers = [[*ids_of(blank + label.name), task.eos_token_id] for label in task.labels]

    def predict(text: str) -> list[float]:
        prompt = [*bos, *ids_of(before + text + after)]
        return [float(p) for p in decode.trie_probabilities(session, prompt, answers)]

    return predict


def _chat_template(folder: Path) -> Callable[[str], str] | None:
    """A user's message rendered by the base's own chat template up to the assistant's turn; None without one."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    path = folder / "chat_template.jinja"
    if not path.exists():
        return None
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(path.read_text("utf-8"))
    return lambda text: template.render(messages=[{"role": "user", "content": text}], add_generation_prompt=True)


def _floor(student: Path, base: Base, task: Task, pairs: dict[str, list[Pair]]) -> System:
    """TF-IDF and logistic regression on the teacher's labels; features and strength chosen on the dev rows."""
    del student, base
    model, note, _ = fit_floor(pairs["train"], pairs["dev"], task)
    saved = pickle.dumps(model)
    start = time.perf_counter()
    pickle.loads(saved)
    return System(_sklearn_predictor(model, task), len(saved), time.perf_counter() - start, note)


def _sklearn_predictor(model: Any, task: Task) -> Predict:
    columns = {name: i for i, name in enumerate(model.classes_)}

    def predict(text: str) -> list[float]:
        chances = model.predict_proba([text])[0]
        return [float(chances[columns[name]]) if name in columns else 0.0 for name in task.label_names]

    return predict


def _agreement(predict: Predict, task: Task, pairs: Sequence[Pair]) -> float:
    hits = 0
    for row, annotation in pairs:
        chances = predict(row.text)
        hits += task.written(task.chosen(chances)) == annotation.label
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
