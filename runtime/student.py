"""load(path) -> Student: the one API over both engines. No torch, no network, nothing written."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from edgestill.runtime import decode
from edgestill.runtime.bundle import ONNX, ONNX_LABELS, Artifact, Bundle, load_bundle, load_task, other_programs
from edgestill.runtime.confidence import load_temperature
from edgestill.runtime.device import usable_cores
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.gguf_session import INSTALL_COMMAND, GgufEncoderSession, GgufSession
from edgestill.runtime.onnx_session import OnnxEncoderSession, OnnxSession
from edgestill.runtime.prediction import (
    Asked,
    Prediction,
    answer,
    answers,
    checked_labels,
    checked_threshold,
    of_labels,
)
from edgestill.runtime.selfcheck import SelfCheck, selfcheck
from edgestill.runtime.session import Session
from edgestill.runtime.task import Task, load_tokenizer
from edgestill.runtime.written import reason_asked, reason_in

ENGINES = {ONNX: OnnxSession, ONNX_LABELS: OnnxEncoderSession, "gguf": GgufSession}
ENCODER_ENGINES = {ONNX: OnnxEncoderSession, "gguf": GgufEncoderSession}
PREFERRED = (ONNX_LABELS, ONNX)
NEEDS = {
    ONNX: "nothing more: onnxruntime comes with edgestill",
    ONNX_LABELS: "nothing more: onnxruntime comes with edgestill",
    "gguf": INSTALL_COMMAND,
}
DEFAULT_MAX_TOKENS = 1024
# Of `predict_many`. CPU time a row on one x86 core in int4: an encoder of six layers 4.2 ms alone, 4.1 by 16, 3.7 by 32
# and 3.5 by 64; a decoder of 135M, whose rows the session computes one after the other, 41 alone and 37 by 16.
CHUNK_ROWS = 32

Fields = str | Mapping[str, Any]


class Student:
    """A loaded bundle. Safe to call from several threads: one lock, one request at a time, in turns.

    `calibration` is what the engine's confidence is scaled by, None where the bundle ships nothing for it.
    """

    def __init__(
        self, folder: Path, bundle: Bundle, task: Task, artifact: Artifact, open_file: Callable[[Artifact], Session]
    ) -> None:
        """Use `load` instead."""
        self.folder = folder
        self.bundle = bundle
        self.task = task
        self.artifact = artifact
        self._open_file = open_file
        self._tokenizer = load_tokenizer(folder)
        self._session = self._opened(artifact)
        only_labels = artifact.engine == ONNX_LABELS
        self._writer = None if only_labels else self._session
        self._lock = threading.Lock()
        self._holder: int | None = None
        self.calibration = load_temperature(folder, artifact.engine)

    def _opened(self, artifact: Artifact) -> Session:
        """The file, with the state of the words that every prompt begins with kept from request to request."""
        session = self._open_file(artifact)
        session.pin(decode.constant_prefix(self.task, self._tokenizer))
        return session

    def predict(
        self, fields: Fields, labels: Sequence[str] | None = None, abstain_below: float | None = None
    ) -> Prediction:
        """Answer one text: all labels' probabilities from one position of one forward pass, or what is written.

        Args:
            fields: the text, or the template's fields by name.
            labels: other labels than the task's; they are scored as words, through the label trie.
            abstain_below: mark the prediction `abstained` where its confidence is lower, 0 to 1.

        Raises:
            EdgestillError: an empty text, a missing field, a text longer than a task that refuses long ones takes, or
                other labels for an encoder.
            UsageError: `labels` that are one text, `abstain_below` that is no probability.
        """
        start = time.perf_counter()
        return self._answer(self.task.fill(fields), labels, start, checked_threshold(abstain_below))

    def predict_text(self, text: str) -> Prediction:
        """`predict` for a text that the task's template has been filled into already, as golden and test rows are."""
        return self._answer(text, None, time.perf_counter(), 0.0)

    def _answer(self, text: str, labels: Sequence[str] | None, start: float, abstain_below: float) -> Prediction:
        if labels is not None:
            self._must_write("predict without labels=, or train with the labels you want")
            names = [self._answer_ids(name) for name in checked_labels(labels)]
        asked = self._asked(text)
        with self._fresh_session(writes=labels is not None or self.task.is_written) as session:
            if labels is None:
                found = answer(session, self._outputs, self._tokenizer, asked, self._temperature)
            else:
                found = of_labels(decode.trie_probabilities(session, asked.ids, names), labels, asked)
        elapsed_ms, abstained = (time.perf_counter() - start) * 1e3, found.confidence < abstain_below
        return replace(found, latency_ms=elapsed_ms, abstained=abstained)

    def _asked(self, text: str) -> Asked:
        return Asked(text, self.task.encode(self._tokenizer, text))

    @property
    def _outputs(self) -> Task:
        return self.task.by_place if self.artifact.engine == ONNX_LABELS else self.task

    @property
    def _temperature(self) -> float:
        return self.calibration.temperature if self.calibration else 1.0

    def predict_many(self, rows: Iterable[Fields], abstain_below: float | None = None) -> Iterator[Prediction]:
        """`predict` for each row, in order and lazily: `CHUNK_ROWS` are read ahead and answered together.

        Answers are those of `predict` up to the kernels' rounding. A row that cannot be answered raises what `predict`
        does, after the answers to the rows before it. Other requests are let in between two chunks.
        """
        return self._many(iter(rows), checked_threshold(abstain_below))

    def _many(self, rows: Iterator[Fields], abstain_below: float) -> Iterator[Prediction]:
        failure: Exception | None = None
        more = True
        while more and failure is None:
            start, asked = time.perf_counter(), list[Asked]()
            try:
                for row in islice(rows, CHUNK_ROWS):
                    one = self._asked(self.task.fill(row))
                    if len(one.ids) > self._session.max_tokens:
                        self.predict(row)  # says why not
                    self.task.choices_in(one.text)
                    asked.append(one)
            except Exception as error:  # perhaps of the caller's own rows
                failure = error
            more = len(asked) == CHUNK_ROWS
            found = self._together(asked) if asked else []
            each_ms = (time.perf_counter() - start) * 1e3 / max(len(found), 1)
            for each in found:
                yield replace(each, latency_ms=each_ms, abstained=each.confidence < abstain_below)
        if failure is not None:
            raise failure

    def _together(self, rows: Sequence[Asked]) -> list[Prediction]:
        with self._fresh_session(writes=self.task.is_written) as session:
            return list(answers(session, self._outputs, self._tokenizer, rows, self._temperature))

    def explain(self, fields: Fields, max_new_tokens: int | None = None) -> str:
        """The reason the student gives, generated on request only; `predict` never pays for it.

        A student that writes its reason before the answer gives that one. At most `max_new_tokens`, by default 64 or
        what the task gives reason and answer together.

        Raises:
            EdgestillError: the student is an encoder, or was trained without rationales.
        """
        self._must_write()
        suffix, limit = reason_asked(self.task)
        ids = self.task.encode(self._tokenizer, self.task.fill(fields), suffix)
        return reason_in("".join(self._generate(ids, max_new_tokens or limit)), self.task)

    def generate(self, prompt: str, max_new_tokens: int = 64) -> str:
        """Greedy text after `prompt`, which is used as it is; stops at the end-of-sequence token.

        Raises:
            EdgestillError: the student is an encoder; `stream` and `score` say the same.
        """
        return "".join(self.stream(prompt, max_new_tokens))

    def stream(self, prompt: str, max_new_tokens: int = 64) -> Iterator[str]:
        """`generate`, piece by piece. Other requests wait until the stream is exhausted or closed.

        Let one thread take it all: a request in the thread that took the last piece is refused meanwhile.
        """
        self._must_write()
        return self._generate(self._tokenizer.encode(prompt, add_special_tokens=False).ids, max_new_tokens)

    def score(self, prompt: str, continuations: Sequence[str]) -> list[float]:
        """Log-probability in nats of each continuation after `prompt`, summed over its tokens, not normalised."""
        self._must_write()
        encode = self._tokenizer.encode
        ids = encode(prompt, add_special_tokens=False).ids
        with self._fresh_session(writes=True) as session:
            rest = [encode(text, add_special_tokens=False).ids for text in continuations]
            return decode.continuation_logprobs(session, ids, rest)

    def selfcheck(self) -> SelfCheck:
        """Answer the bundle's golden rows on this device and compare with the trained weights' answers."""
        return selfcheck(self.predict_text, self.folder / "golden.jsonl")

    def info(self) -> dict[str, Any]:
        """What is loaded: name, engine, file, bytes, quantization, labels, base, limits, calibration (None without).

        `engines` says what each engine of the bundle needs, `other_programs` how to start others on its files.
        """
        return {
            "name": self.bundle.name,
            "engine": self.artifact.engine,
            "artifact": self.artifact.path,
            "bytes": self.artifact.bytes,
            "quantization": self.artifact.quantization,
            "labels": self.task.label_names,
            "base": self.bundle.base["spec"],
            "max_tokens": self._session.max_tokens,
            "calibration": asdict(self.calibration) if self.calibration else None,
            "engines": {each.engine: NEEDS[each.engine] for each in self.bundle.artifacts},
            "other_programs": other_programs(self.folder, self.bundle),
        }

    @contextmanager
    def _fresh_session(self, writes: bool = False) -> Iterator[Session]:
        """The session for one request: nobody else's meanwhile, and nothing kept from the request before.

        What `writes` wants logits of the whole vocabulary; beside a graph that only labels, the first such request
        opens the file that has them.
        """
        if self._holder == threading.get_ident():  # waiting for oneself never ends
            raise EdgestillError(
                "a stream of this student is still open in this thread", "exhaust or close it, or load a second student"
            )
        with self._lock:
            if writes and self._writer is None:
                self._writer = self._opened(_choose(self.bundle, ONNX))
            session = self._writer if writes and self._writer is not None else self._session
            session.forget()
            self._holder = threading.get_ident()
            try:
                yield session
            finally:
                self._holder = None

    def _must_write(self, hint: str = "call predict, or build a student with student.kind: causal") -> None:
        if self.task.is_head:
            raise EdgestillError("this student is an encoder: it labels and does not write", hint)

    def _answer_ids(self, name: str) -> list[int]:
        return [*self._tokenizer.encode(" " + name, add_special_tokens=False).ids, self.task.eos_token_id]

    def _generate(self, ids: list[int], max_new_tokens: int) -> Iterator[str]:
        with self._fresh_session(writes=True) as session:
            tokens = decode.greedy(session, ids, [self.task.eos_token_id], max_new_tokens)
            for piece in decode.text_pieces(tokens, self._tokenizer):
                yield piece
                self._holder = threading.get_ident()  # a pool may take each piece in another thread


def load(
    path: str | Path, engine: str | None = None, threads: int | None = None, max_tokens: int | None = None
) -> Student:
    """Load a bundle for use on this machine.

    Args:
        path: folder of a bundle.
        engine: "onnx", "gguf", or "onnx-labels" where the bundle has a graph that only labels; default: the first it
            has of onnx-labels, onnx and gguf. What writes opens the file of "onnx" when onnx-labels is first asked to.
        threads: default: the cores this process may run on.
        max_tokens: longest prompt plus answer, in tokens, at most the model's own context; default: 1024, or what the
            task's longest text needs.

    Raises:
        EdgestillError: no whole bundle there, an engine the bundle has no file for, or a file that does not open.
    """
    folder = Path(path)
    bundle = load_bundle(folder)
    artifact = _choose(bundle, engine)
    task = load_task(folder)
    needed = task.max_text_tokens + task.room_tokens
    limit = min(max_tokens or max(DEFAULT_MAX_TOKENS, needed), bundle.context_tokens)
    engines = ENCODER_ENGINES if task.is_head else ENGINES

    def open_file(chosen: Artifact) -> Session:
        longest = min(limit, needed) if chosen.engine == ONNX_LABELS else limit  # its graph has no more positions
        return engines[chosen.engine](folder / chosen.path, threads or usable_cores(), longest)

    return Student(folder, bundle, task, artifact, open_file)


def _choose(bundle: Bundle, engine: str | None) -> Artifact:
    by_engine = {artifact.engine: artifact for artifact in bundle.artifacts}
    if engine is None:
        return next((by_engine[name] for name in PREFERRED if name in by_engine), bundle.artifacts[0])
    if engine not in by_engine:
        raise UsageError(f"engine {engine!r} is not in this bundle, it has {sorted(by_engine)}", "choose one of those")
    return by_engine[engine]
