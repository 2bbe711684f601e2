"""The gates of a student that writes: what torch wrote is kept, and an engine that writes otherwise is found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_runs import LEGS, a_task, choosing_task, legs, written_bundle

from edgestill.export.build import engines_of
from edgestill.export.calibrate import calibrate, fit_temperature
from edgestill.export.cards import modelfile
from edgestill.export.gates.answers import answer_gates
from edgestill.export.gates.endings import ending_gate, ends, longest_answer
from edgestill.export.gates.writing import FORCED_TOKENS, measure_written, written_references
from edgestill.runtime import Student, load, manifest
from edgestill.runtime.confidence import log_odds
from edgestill.runtime.errors import UsageError
from edgestill.runtime.session import Logits, Session
from edgestill.runtime.task import load_tokenizer


class Tampered(Session):
    """A student's session with something added to the logit of one token."""

    reuses_prefix = False

    def __init__(self, student: Student, token: int, more: float) -> None:
        super().__init__(200)
        self._inner, self._token, self._more = student._session, token, more

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        assert kept == 0
        self._inner.forget()
        logits = np.array(self._inner.logits(ids))
        logits[self._token] += self._more
        return logits


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return written_bundle(tmp_path_factory.mktemp("writing"), tiny_base, a_task(), legs(a_task()))


@pytest.fixture(scope="module")
def student(bundle: Path) -> Student:
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def seen(student: Student) -> Any:
    rows = [{"text": student.task.fill(animal), "label": legs} for animal, legs in LEGS.items()]
    return written_references(Tampered(student, 0, 0.0).logits, student.task, student._tokenizer, rows)


def test_a_bundle_holds_what_was_written_and_checked(bundle: Path) -> None:
    parity = json.loads((bundle / "bundle.json").read_text())["parity"]
    gates = {gate["name"]: gate for gate in parity["gates"]}
    assert gates["onnx: answers other than torch's"]["figure"] == 0
    assert gates["onnx: answers without end"]["unit"] == f"of {len(LEGS)} that torch ends, {len(LEGS)} asked"
    assert gates["onnx in float32: KL at the answer"]["figure"] < 1e-6
    golden = list(manifest.read_jsonl(bundle / "golden.jsonl"))
    assert [row["written"] for row in golden] == [f"{answer} legs" for answer in LEGS.values()]
    assert all(row["probabilities"] == {} and 0.5 < row["confidence"] < 1 for row in golden)
    assert not (bundle / "calibration.json").exists()
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert "It writes its answer, a number." in card
    assert "text-generation" in card
    assert "Labels" not in card


def test_the_first_rows_are_known_behind_torchs_own_tokens_too(student: Student, seen: Any) -> None:
    for row in seen:
        ids, logits = row.positions[-1]
        assert len(row.positions) == 1 + min(FORCED_TOKENS, row.written.tokens)
        assert ids == [*row.ids, *row.written.ids[:FORCED_TOKENS]]
        assert int(logits.argmax()) in (*row.written.ids, student.task.eos_token_id)


def test_an_engine_that_writes_the_same_passes(student: Student, seen: Any) -> None:
    same = Tampered(student, 0, 0.0)
    found = measure_written(same, seen, student.task, student._tokenizer, same.logits)
    assert (found.labels_kept, found.max_margin_flipped, found.max_probability_difference) == (1.0, 0.0, 0.0)
    assert all(gate.passed for gate in answer_gates("onnx", found, "answers"))


def test_an_engine_that_writes_another_number_fails(student: Student, seen: Any) -> None:
    nine = student._tokenizer.encode("9", add_special_tokens=False).ids[0]
    other, torch = Tampered(student, nine, 60.0), Tampered(student, 0, 0.0)
    found = measure_written(other, seen, student.task, student._tokenizer, torch.logits)
    assert found.labels_kept == 0
    assert found.max_margin_flipped > 0.9
    failed = {gate.name for gate in answer_gates("onnx", found, "answers") if not gate.passed}
    assert {"onnx: answers other than torch's", "onnx: torch's margin in a changed answer"} <= failed


def test_an_engine_that_does_not_end_fails(student: Student, seen: Any) -> None:
    task, longest = student.task, longest_answer(student.task, student._tokenizer)
    endless, torch = Tampered(student, task.eos_token_id, -1e4), Tampered(student, 0, 0.0)
    ended = [ends(torch, row, task, longest) for row in seen]
    assert longest == task.max_answer_tokens
    assert all(ended)
    assert ending_gate("onnx", torch, ended, seen, task, longest).passed
    gate = ending_gate("onnx", endless, ended, seen, task, longest)
    assert (gate.figure, gate.passed) == (len(LEGS), False)


def test_a_task_that_generates_has_no_temperature_and_no_graph_of_labels() -> None:
    rows = [{"label": "1"}] * 100
    assert calibrate({"onnx": np.zeros((100, 0))}, rows, a_task()) is None
    with pytest.raises(UsageError, match="the task generates"):
        engines_of({"artifacts": ["onnx"], "specialise": True}, a_task())


def test_letters_without_a_choice_do_not_move_the_temperature() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1], 80)
    truth = (rng.random(80) > p[:, 0]).astype(np.int64)
    padded = np.pad(p, ((0, 0), (0, 3)))
    alone, among = (fit_temperature(log_odds(each, False), truth) for each in (p, padded))
    assert among == pytest.approx(alone)


def test_a_chain_is_prompted_for_its_reason_and_choices_for_their_letter(tiny_base: Path) -> None:
    assert '{{ .Prompt }}\nReason:"""' in modelfile(a_task(chain=True), "x.gguf", "<end>")
    assert '{{ .Prompt }}\nAnswer:"""' in modelfile(choosing_task(load_tokenizer(tiny_base)), "x.gguf", "<end>")
    assert replace(a_task(), chain=True).prompt_suffix == "\nReason:"
