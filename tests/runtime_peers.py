"""Who answers in `bench_runtime`: the runtime and its peers over one bundle, each in a process of its own.

Usage: runtime_peers.py NAME BUNDLE THREADS JOB, where JOB is a file of token ids. Reads lines on stdin and answers
each with a line of JSON: "label" times all prompts, "write" times free text. All get the same token ids and none
tokenizes; the peers' prefix caches are on, and they stop at the end of the label.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.runtime import decode
from edgestill.runtime.bundle import load_bundle, load_task
from edgestill.runtime.task import Task, load_tokenizer

MAX_TOKENS = 1024
Ids = Sequence[int]


@dataclass(frozen=True)
class Peer:
    """One way of answering. `label` gives the name of the label, or what was written instead; `write` is N tokens."""

    label: Callable[[Ids], str]
    write: Callable[[Ids, int], list[int]] | None = None


class Ending:
    """Follows a text token by token until it is a label that no other label goes on from, or none can be any more."""

    def __init__(self, task: Task, tokenizer: Any) -> None:
        self.names = {label.completion: label.name for label in task.labels}
        self.longest = max(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in self.names) + 2
        self.pieces: dict[int, str] = {}
        self.tokenizer = tokenizer

    def follow(self, tokens: Iterator[int]) -> str:
        """The label's name, or the text that is none."""
        text = ""
        for _, token in zip(range(self.longest), tokens, strict=False):
            text += self.piece(token)
            if self.ended(text):
                break
        return self.names.get(text, text)

    def piece(self, token: int) -> str:
        if token not in self.pieces:
            self.pieces[token] = self.tokenizer.decode([token], skip_special_tokens=False)
        return self.pieces[token]

    def ended(self, text: str) -> bool:
        return not any(other.startswith(text) and other != text for other in self.names)


def ours(bundle: Path, threads: int, engine: str, whole: bool) -> Peer:
    """The steps of `Student.predict` from token ids on: all probabilities (`whole`), or the likeliest label alone."""
    from edgestill.runtime.student import load

    student = load(bundle, engine, threads, MAX_TOKENS)
    session, task, outputs = student._session, student.task, student._outputs
    places = np.array([label.token_id for label in outputs.labels])

    def label(ids: Ids) -> str:
        session.forget()
        logits = session.logits(ids)
        if not whole:
            return task.label_names[int(logits[places].argmax())]
        return task.chosen(decode.task_probabilities(logits, outputs).tolist())[0]

    def write(ids: Ids, count: int) -> list[int]:
        session.forget()
        return list(decode.greedy(session, ids, [], count))

    return Peer(label, None if engine == "onnx-labels" else write)


def llama_cpp_python(bundle: Path, threads: int, grammar: bool) -> Peer:
    import llama_cpp

    (path,) = (bundle / a.path for a in load_bundle(bundle).artifacts if a.engine == "gguf")
    llama = llama_cpp.Llama(str(path), n_ctx=MAX_TOKENS, n_threads=threads, n_threads_batch=threads, verbose=False)
    ending = Ending(load_task(bundle), load_tokenizer(bundle))
    rules = " | ".join(json.dumps(text) for text in ending.names)
    allowed = llama_cpp.LlamaGrammar.from_string(f"root ::= {rules}", verbose=False) if grammar else None

    def tokens(ids: Ids) -> Iterator[int]:
        return iter(llama.generate(list(ids), temp=0.0, top_k=1, repeat_penalty=1.0, grammar=allowed))

    def write(ids: Ids, count: int) -> list[int]:
        return [token for _, token in zip(range(count), tokens(ids), strict=False)]

    return Peer(lambda ids: ending.follow(tokens(ids)), None if grammar else write)


def onnxruntime_genai(bundle: Path, threads: int, guided: bool) -> Peer:
    """One generator that is wound back to what two prompts share; guided, it cannot be and is made anew."""
    import onnxruntime_genai as og

    config = og.Config(str(bundle))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    ending = Ending(load_task(bundle), load_tokenizer(bundle))
    held: list[int] = []
    rules = f"start: {' | '.join(json.dumps(text) for text in ending.names)}"

    def generator(length: int, least: int = 0) -> Any:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=length, min_length=least, do_sample=False)
        if guided:
            parameters.set_guidance("lark_grammar", rules)
        return og.Generator(model, parameters)

    kept = None if guided else generator(MAX_TOKENS)

    def tokens(ids: Ids) -> Iterator[int]:
        shared = 0
        if kept is None:
            running = generator(len(ids) + ending.longest)
        else:
            running = kept
            shared = next((i for i, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b),
                          min(len(held), len(ids)))  # fmt: skip
            shared = min(shared, len(ids) - 1)
            running.rewind_to(shared)
        running.append_tokens(np.asarray(ids[shared:], np.int32))
        held[:] = ids
        while True:
            running.generate_next_token()
            yield int(running.get_next_tokens()[0])
            if running.is_done():
                return

    def write(ids: Ids, count: int) -> list[int]:
        running, written = generator(len(ids) + count, least=len(ids) + count), []
        running.append_tokens(np.asarray(ids, np.int32))
        for _ in range(count):
            running.generate_next_token()
            written.append(int(running.get_next_tokens()[0]))
        return written

    return Peer(lambda ids: ending.follow(tokens(ids)), None if guided else write)


def transformers(bundle: Path, threads: int, kind: str) -> Peer:
    """`generate` with the very numbers of the bundle's ONNX file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

    from edgestill.export.parity import read_onnx

    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(bundle)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    (path,) = (bundle / a.path for a in load_bundle(bundle).artifacts if a.engine == "onnx")
    raw = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    values = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in read_onnx(path, raw)}
    model.load_state_dict(values, strict=False)
    model.tie_weights()
    model = model.to(getattr(torch, kind)).eval()
    task = load_task(bundle)
    ending = Ending(task, load_tokenizer(bundle))

    class AtLabelsEnd(StoppingCriteria):  # type: ignore[misc]
        def __init__(self, before: int) -> None:
            self.before = before

        def __call__(self, input_ids: Any, *_: Any, **__: Any) -> Any:
            text = "".join(ending.piece(int(token)) for token in input_ids[0, self.before :])
            return torch.tensor([ending.ended(text)])

    def label(ids: Ids) -> str:
        stop = StoppingCriteriaList([AtLabelsEnd(len(ids))])
        given = torch.tensor([list(ids)])
        with torch.inference_mode():
            found = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=ending.longest,
                                   do_sample=False, stopping_criteria=stop, pad_token_id=task.eos_token_id)  # fmt: skip
        return ending.follow(iter(found[0, len(ids) :].tolist()))

    return Peer(label)


PEERS: dict[str, Callable[[Path, int], Peer]] = {
    "edgestill onnx, label": lambda b, t: ours(b, t, "onnx", whole=False),
    "edgestill onnx, all": lambda b, t: ours(b, t, "onnx", whole=True),
    "edgestill onnx-labels, all": lambda b, t: ours(b, t, "onnx-labels", whole=True),
    "edgestill gguf, label": lambda b, t: ours(b, t, "gguf", whole=False),
    "edgestill gguf, all": lambda b, t: ours(b, t, "gguf", whole=True),
    "llama-cpp-python, grammar": lambda b, t: llama_cpp_python(b, t, grammar=True),
    "llama-cpp-python, free": lambda b, t: llama_cpp_python(b, t, grammar=False),
    "onnxruntime-genai, guided": lambda b, t: onnxruntime_genai(b, t, guided=True),
    "onnxruntime-genai, free": lambda b, t: onnxruntime_genai(b, t, guided=False),
    "transformers float32": lambda b, t: transformers(b, t, "float32"),
    "transformers bfloat16": lambda b, t: transformers(b, t, "bfloat16"),
}


def timed(answer: Callable[[], Any]) -> tuple[Any, float, float]:
    """(what it gives, wall ms, processor ms of all threads)."""
    wall, processor = time.perf_counter(), time.process_time()
    found = answer()
    return found, (time.perf_counter() - wall) * 1e3, (time.process_time() - processor) * 1e3


def main(name: str, bundle: Path, threads: int, job: Path) -> None:
    warnings.simplefilter("ignore")
    asked = json.loads(job.read_text(encoding="utf-8"))
    peer = PEERS[name](bundle, threads)
    for ids in asked["prompts"][:2]:
        peer.label(ids)
    print(json.dumps({"writes": peer.write is not None}), flush=True)
    for line in sys.stdin:
        if line.strip() == "label":
            found = [timed(lambda ids=ids: peer.label(ids)) for ids in asked["prompts"]]
        else:
            assert peer.write is not None
            found = [timed(lambda: peer.write(asked["start"], asked["new_tokens"]))]  # type: ignore[misc]
        answers, wall_ms, processor_ms = zip(*found, strict=True)
        print(json.dumps({"answers": answers, "wall_ms": wall_ms, "processor_ms": processor_ms}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
