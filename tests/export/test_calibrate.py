"""Temperatures fitted to answers whose true temperature is known, and the file that a build leaves."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_runs import LABELS, TEXTS, Run, encoder_task, export_section, silent
from hypothesis import given
from hypothesis import strategies as st

from edgestill.export.calibrate import HIGHEST, LOWEST, MIN_ROWS, calibrate, fit_temperature
from edgestill.export.gates.answers import measure
from edgestill.export.gates.reference import references
from edgestill.export.pack import run_export
from edgestill.runtime import label_sets, load, manifest
from edgestill.runtime.bundle import changed_files, load_bundle
from edgestill.runtime.confidence import load_temperature, log_odds
from edgestill.runtime.decode import log_softmax
from edgestill.runtime.task import Task

TASK, SETS = encoder_task(), encoder_task(kind="multilabel")


def drawn(rows: int, temperature: float, seed: int = 0) -> tuple[Any, list[str]]:
    """(probabilities, labels drawn from them after dividing their logits by `temperature`)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (rows, len(LABELS)))
    true = np.exp(log_softmax(logits / temperature))
    return np.exp(log_softmax(logits)), [LABELS[random.choice(len(LABELS), p=p)] for p in true]


def drawn_sets(rows: int, temperature: float) -> tuple[Any, list[str]]:
    """The same for sets: each label by its own sigmoid."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (rows, len(LABELS)))
    held = random.random(logits.shape) < 1 / (1 + np.exp(-logits / temperature))
    truth = [label_sets.join([n for n, h in zip(LABELS, row, strict=True) if h], LABELS) for row in held]
    return 1 / (1 + np.exp(-logits)), truth


def judged(labels: list[str]) -> list[dict[str, str]]:
    return [{"text": "...", "label": label} for label in labels]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize(("task", "draw"), [(TASK, drawn), (SETS, drawn_sets)])
def test_the_temperature_that_made_the_labels_is_found(task: Task, draw: Any, temperature: float) -> None:
    probabilities, truth = draw(4_000, temperature)
    found = calibrate({"onnx": probabilities}, judged(truth), task).temperatures[0]
    assert found.temperature == pytest.approx(temperature, rel=0.12)
    assert found.ece_after < 0.03
    assert (found.ece_before > 0.03) == (temperature != 1)
    assert (found.rows, found.judged_by, found.engine) == (4_000, "teacher", "onnx")


def test_a_label_whose_name_is_part_of_anothers_is_told_from_it() -> None:
    probabilities, truth = drawn_sets(400, 1.0)
    longer = tuple(dataclasses.replace(x, name=name) for x, name in zip(SETS.labels, ("a", "ab", "abc"), strict=True))
    renamed = [text.replace("lights", "a").replace("music", "ab").replace("weather", "abc") for text in truth]
    found = calibrate({"onnx": probabilities}, judged(renamed), dataclasses.replace(SETS, labels=longer))
    assert found == calibrate({"onnx": probabilities}, judged(truth), SETS)


@given(st.integers(0, 1_000), st.floats(0.3, 5))
def test_no_other_temperature_has_a_smaller_cross_entropy(seed: int, other: float) -> None:
    probabilities, truth = drawn(60, 1.7, seed)
    odds, places = log_odds(probabilities, False), np.array([LABELS.index(x) for x in truth])
    share = np.full(odds.shape, 1 / 61 / 3)
    share[np.arange(60), places] += 60 / 61
    best = fit_temperature(odds, places)
    assert LOWEST < best < HIGHEST
    assert -(share * log_softmax(odds / best)).sum() <= -(share * log_softmax(odds / other)).sum() + 1e-9


def test_answers_that_were_all_right_do_not_make_the_rest_certain() -> None:
    probabilities = np.tile([0.9, 0.06, 0.04], (60, 1))
    found = fit_temperature(log_odds(probabilities, False), np.zeros(60, np.int64))
    scaled = np.exp(log_softmax(np.log(probabilities[0]) / found))[0]
    assert 0.95 < scaled < 0.995


def test_labels_that_contradict_the_answers_end_at_the_bound() -> None:
    probabilities = np.tile([0.9, 0.06, 0.04], (60, 1))
    assert fit_temperature(log_odds(probabilities, False), np.full(60, 2)) == pytest.approx(HIGHEST)


def test_the_error_after_is_of_rows_that_the_temperature_was_not_fitted_to() -> None:
    probabilities, truth = drawn(60, 1.0)
    one = calibrate({"onnx": probabilities}, judged(truth), TASK).temperatures[0]
    fitted = np.exp(log_softmax(np.log(probabilities) / one.temperature)).max(1)
    from edgestill.runtime.metrics import expected_calibration_error

    right = [LABELS[i] == x for i, x in zip(probabilities.argmax(1), truth, strict=True)]
    assert one.ece_before == pytest.approx(expected_calibration_error(probabilities.max(1), right))
    assert one.ece_after != pytest.approx(expected_calibration_error(fitted, right), abs=1e-6)


def test_few_rows_rows_without_a_judge_and_rows_that_nobody_answered_give_none() -> None:
    probabilities, truth = drawn(MIN_ROWS, 1.0)
    rows = judged(truth)
    assert calibrate({"onnx": probabilities}, rows, TASK) is not None
    assert calibrate({"onnx": probabilities[1:]}, rows, TASK) is None
    assert calibrate({"onnx": probabilities}, [{"text": "..."}, *rows[1:]], TASK) is None
    assert calibrate({"onnx": probabilities}, [{"text": "..."}] * MIN_ROWS, TASK) is None


def test_answers_that_are_certain_to_the_last_bit_do_not_outweigh_the_others() -> None:
    probabilities, truth = drawn_sets(400, 2.0)
    almost = np.clip(probabilities, 1e-15, 1 - 1e-15)
    almost[:4], probabilities = [1e-15, 1 - 1e-15, 1e-15], almost.copy()
    probabilities[:4] = [0.0, 1.0, 0.0]  # what sigmoids say that are saturated; half of them are wrong
    truth[:4] = ["music", "music", "lights | weather", "lights | weather"]
    found, wanted = (calibrate({"onnx": p}, judged(truth), SETS).temperatures[0] for p in (probabilities, almost))
    assert found.temperature == pytest.approx(wanted.temperature, rel=0.1)


def test_the_gates_hand_over_the_probabilities_that_they_measured(roberta_run: Run, roberta_bundles: Any) -> None:
    student = load(roberta_bundles["q8_0"], "onnx", threads=1)
    rows = [{"text": text} for text in TEXTS]
    wanted = references(lambda ids: roberta_run[1].logits(ids).detach().numpy(), TASK, student._tokenizer, rows)
    found = measure(student._session, wanted, TASK, student._tokenizer)
    assert found.probabilities.tolist() == [list(student.predict(t).probabilities.values()) for t in TEXTS]
    assert "probabilities" not in found.facts()


def test_a_build_with_judged_rows_ships_a_temperature_for_each_engine(roberta_run: Run, tmp_path: Path) -> None:
    shutil.copytree(roberta_run[0], tmp_path / "student")
    rows = [{"id": str(i), "text": f"{TEXTS[i % 6]}, {i}", "label": LABELS[i % 3]} for i in range(MIN_ROWS)]
    manifest.write_jsonl(tmp_path / "student" / "dev.jsonl", rows)
    run_export(tmp_path / "student", export_section(), tmp_path / "bundle", silent)
    assert changed_files(tmp_path / "bundle", load_bundle(tmp_path / "bundle")) == []
    for engine in ("onnx", "gguf"):
        shipped, student = load_temperature(tmp_path / "bundle", engine), load(tmp_path / "bundle", engine, threads=1)
        answers = np.array([list(student.predict(row["text"]).probabilities.values()) for row in rows])
        (wanted,) = calibrate({engine: answers}, rows, TASK).temperatures
        assert student.calibration == shipped
        assert shipped.temperature == pytest.approx(wanted.temperature, rel=1e-3)
        assert (shipped.rows, shipped.judged_by, shipped.engine) == (MIN_ROWS, "teacher", engine)


def test_a_build_without_judged_rows_ships_none(roberta_bundles: Any) -> None:
    assert not (roberta_bundles["q4_0"] / "calibration.json").exists()
