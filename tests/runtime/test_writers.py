"""Students that write their answers and students that choose: the answers of a loaded bundle."""

import json
import shutil
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
from written_runs import COLOURS, LEGS

from edgestill.runtime import Prediction, load, pipeline
from edgestill.runtime.decode import continuation_logprobs
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.verify import verify_bundle

ANSWERS = {animal: "" if answer.startswith("none") else answer for animal, answer in LEGS.items()}


def but_for_time(found: Prediction) -> Prediction:
    return replace(found, latency_ms=0.0, confidence=0.0)


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_an_answer_is_written_to_its_end_and_read_out_of_it(writers: dict[str, Path], engine: str) -> None:
    student = load(writers["plain"], engine, threads=1)
    found = {animal: student.predict(animal) for animal in LEGS}
    assert {animal: one.label for animal, one in found.items()} == ANSWERS
    assert {animal: one.text for animal, one in found.items()} == {a: f"{answer} legs" for a, answer in LEGS.items()}
    assert all(one.labels == (one.label,) and one.probabilities == {} and one.choice is None for one in found.values())
    assert all(0.5 < one.confidence < 1 and one.tokens_written in (3, 4) for one in found.values())


def test_the_confidence_is_the_probability_of_the_tokens_and_of_the_end(writers: dict[str, Path]) -> None:
    student = load(writers["plain"], threads=1)
    found = student.predict("cat")
    prompt, end = student.task.render(student.task.fill("cat"), "\nAnswer:"), "<|im_end|>"
    ids = student._tokenizer.encode(" " + (found.text or ""), add_special_tokens=False).ids
    assert student._tokenizer.id_to_token(2) == end
    prompt_ids = student._tokenizer.encode(prompt, add_special_tokens=False).ids
    (logprob,) = continuation_logprobs(student._session, prompt_ids, [[*ids, 2]])
    assert found.confidence == pytest.approx(exp(logprob), rel=1e-3)


def test_many_rows_are_answered_as_one_by_one(writers: dict[str, Path]) -> None:
    for name, rows in (("plain", list(LEGS)), ("choose", [f"{thing}\nA) red\nB) blue" for thing in COLOURS])):
        student = load(writers[name], threads=1)
        many = list(student.predict_many(rows))
        assert [but_for_time(one) for one in many] == [but_for_time(student.predict(row)) for row in rows]


def test_an_answer_below_the_confidence_wanted_abstains(writers: dict[str, Path]) -> None:
    student = load(writers["plain"], threads=1)
    sure = student.predict("cat").confidence
    assert student.predict("cat", abstain_below=1.0).abstained
    assert not student.predict("cat", abstain_below=sure / 2).abstained
    assert [one.abstained for one in student.predict_many(["cat"], abstain_below=1.0)] == [True]


def test_a_chain_writes_its_reason_first_and_explains_with_it(writers: dict[str, Path]) -> None:
    student = load(writers["chain"], threads=1)
    found = student.predict("spider")
    assert found.text == "I counted the spider\nAnswer: 8 legs"
    assert (found.label, student.explain("spider")) == ("8", "I counted the spider")
    assert student.explain("spider", max_new_tokens=2) == "I counted"
    with pytest.raises(EdgestillError, match="trained without rationales"):
        load(writers["plain"], threads=1).explain("spider")


def test_a_limit_that_comes_before_the_answer_leaves_none(writers: dict[str, Path]) -> None:
    student = load(writers["chain"], threads=1)
    student.task = replace(student.task, max_answer_tokens=4)
    found = student.predict("spider")
    assert (found.label, found.tokens_written) == ("", 4)


def test_other_labels_are_scored_as_words(writers: dict[str, Path]) -> None:
    found = load(writers["plain"], threads=1).predict("cat", labels=["4 legs", "8 legs"])
    assert found.label == "4 legs"
    assert found.probabilities["4 legs"] > 0.9
    assert found.prompt_tokens > 5


def test_a_choice_is_a_letter_and_its_words(writers: dict[str, Path]) -> None:
    student = load(writers["choose"], threads=1)
    rows = {"tomato": ["green", "red"], "coal": ["red", "green", "black"], "snow": ["white", "red"]}
    found = {thing: student.predict({"thing": thing, "colours": choices}) for thing, choices in rows.items()}
    assert {thing: one.choice for thing, one in found.items()} == {thing: COLOURS[thing] for thing in rows}
    assert {thing: one.label for thing, one in found.items()} == {"tomato": "B", "coal": "C", "snow": "A"}
    for thing, one in found.items():
        letters = "ABCD"[: len(rows[thing])]
        assert sum(one.probabilities[letter] for letter in letters) == pytest.approx(1)
        assert all(p == 0 for letter, p in one.probabilities.items() if letter not in letters)
    rendered = "tomato is\nA) green\nB) red"
    assert but_for_time(student.predict_text(rendered)) == but_for_time(found["tomato"])


def test_a_row_without_choices_is_refused_after_those_before_it(writers: dict[str, Path]) -> None:
    student = load(writers["choose"], threads=1)
    answers = student.predict_many([{"thing": "snow", "colours": ["white", "red"]}, {"thing": "coal"}])
    assert next(answers).choice == "white"
    with pytest.raises(EdgestillError, match="the field 'colours' is missing"):
        next(answers)


def test_the_check_on_the_device_counts_answers_that_changed(writers: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(writers["plain"], tmp_path / "bundle")
    assert load(folder, threads=1).selfcheck().labels_changed == 0
    assert set(verify_bundle(folder).engines) == {"onnx", "gguf"}
    golden = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
    golden[0] |= {"label": "5"}
    golden[1] |= {"confidence": golden[1]["confidence"] - 0.25}
    (folder / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in golden))
    found = load(folder, threads=1).selfcheck()
    assert found.labels_changed == 1
    assert found.max_probability_difference == pytest.approx(0.25, abs=0.01)


def test_a_pipeline_of_scores_says_that_there_are_none(writers: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="writes its answer"):
        pipeline("text-classification", writers["plain"])
    classify = pipeline("text-classification", writers["choose"])
    assert classify("tomato\nA) green\nB) red")[0]["label"] == "B"
