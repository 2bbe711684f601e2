"""All gates of one build, the cheap ones first; the first that fails ends it."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgestill.export.build import Build, Logits
from edgestill.export.gates.answers import Answers, answer_gates, measure
from edgestill.export.gates.endings import TorchSession, ending_gate, ends, longest_answer
from edgestill.export.gates.gate import Gate, at_most, require
from edgestill.export.gates.reference import Reference, by_labels, references
from edgestill.export.gates.size import size_gate
from edgestill.export.gates.template import template_gate
from edgestill.export.gates.tokens import token_gates
from edgestill.export.gates.twin import twin_gates
from edgestill.export.gates.writing import measure_written, written_references
from edgestill.export.grid import Grid
from edgestill.runtime.bundle import ONNX_LABELS
from edgestill.runtime.device import usable_cores
from edgestill.runtime.student import ENCODER_ENGINES, ENGINES
from edgestill.runtime.task import Task, load_tokenizer

ENDING_ROWS = 32
BUG = "report this as a bug with the recipe"
FINER = "set export.quantization: q8_0 in the recipe, then type: edgestill export RECIPE"


def file_gates(build: Build, read: Mapping[str, Any], numbers: Mapping[str, Any], probes: Sequence[str]) -> list[Gate]:
    """What needs no answer: merging, equal numbers, token ids, the chat template.

    Args:
        build: with all files written.
        read: what reading the trained weights measured.
        numbers: what comparing the files' numbers measured; a difference has ended the build before.
        probes: texts that tell tokenizers apart.

    Raises:
        GateFailed: the first gate that does not hold.
    """
    gates = []
    if "merge_max_logit_difference" in read:
        from edgestill.distill.student.merge import MAX_MERGE_DIFFERENCE

        difference = read["merge_max_logit_difference"]
        gates.append(at_most("merged against adapter, any logit", difference, MAX_MERGE_DIFFERENCE, "logits"))
    name = f"numbers of {numbers['tensors']:,} tensors, files against grid"
    gates.append(at_most(name, numbers["max_difference"], 0, "apart"))
    gates += token_gates(build, probes)
    gguf = build.path("gguf")
    if gguf is not None and not build.task.is_head:
        gates += template_gate(build.folder, gguf)
    return require(gates, BUG)


def torch_answers(logits: Logits, task: Task, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> list[Reference]:
    """What torch answers to rows of `dev.jsonl` on the grid's own numbers, as the task answers."""
    return (written_references if task.is_written else references)(logits, task, tokenizer, rows)


def answer_checks(
    build: Build, grid: Grid, logits: Logits, rows: Sequence[Reference]
) -> tuple[dict[str, Answers], list[Gate]]:
    """(answers by engine, gates) of what needs the engines: size, float32 twins, shipped kernels, endings.

    Args:
        build: with all files written.
        grid: what they hold.
        logits: torch's, for answers longer than one token.
        rows: torch's answers.

    Raises:
        GateFailed: the first gate that does not hold.
    """
    gates = require((size_gate(build, engine, grid) for engine in build.artifacts), BUG)
    ended = None if build.task.is_head else _ended(build, logits, rows[:ENDING_ROWS])
    answers = {}
    for engine in build.artifacts:
        seen, task = by_labels(rows, build.task) if engine == ONNX_LABELS else (rows, build.task)
        with tempfile.TemporaryDirectory(dir=build.folder, prefix=".twin-") as name:
            path = Path(name) / f"twin.{engine.partition('-')[0]}"
            gates += require(twin_gates(build, engine, grid, seen, task, path), BUG)
        session = _open(build, engine, seen)
        tokenizer = load_tokenizer(build.folder)
        if task.is_written:
            answers[engine], what = measure_written(session, seen, task, tokenizer, logits), "answers"
        else:
            answers[engine], what = measure(session, seen, task, tokenizer), "labels"
        gates += require(answer_gates(engine, answers[engine], what), FINER)
        if ended is not None and engine != ONNX_LABELS:
            longest, done = ended
            gate = ending_gate(engine, session, done, rows[: len(done)], task, longest)
            gates += require([gate], FINER)
    return answers, gates


def _open(build: Build, engine: str, rows: Sequence[Reference]) -> Any:
    """The engine as a device opens it, with room for the longest row and its answer."""
    path = build.path(engine)
    engines: Mapping[str, Any] = ENCODER_ENGINES if build.task.is_head else ENGINES
    room = 0 if build.task.is_head or engine == ONNX_LABELS else build.task.room_tokens
    return engines[engine](path, usable_cores(), max(len(row.ids) for row in rows) + room)


def _ended(build: Build, logits: Logits, rows: Sequence[Reference]) -> tuple[int, list[bool]]:
    """(tokens of the longest answer, whether torch ends its answer to each row within them)."""
    longest = longest_answer(build.task, load_tokenizer(build.student))
    known = {row.ids: row.logits for row in rows}
    torch = TorchSession(logits, known, max(len(row.ids) for row in rows) + longest + 1)
    return longest, [ends(torch, row, build.task, longest) for row in rows]
