"""Response priming in text mode: the teacher is asked otherwise, and nobody else hears of it (arXiv 2412.17846)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Answer, Call, ScriptedServer

from edgestill.distill.annotate import accepted, annotate
from edgestill.distill.dataset import Dataset, Row, row_id
from edgestill.distill.labels import build_task
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.causal import make_example
from edgestill.distill.teacher.open import open_teacher, teacher_fingerprint
from edgestill.distill.teacher.priming import AFTER, BEFORE, primed, unprimed
from edgestill.distill.teacher.prompt import Prompter, first_dialect, teacher_prompt
from edgestill.runtime.serving.teacher_prompt import find
from edgestill.runtime.task import load_tokenizer

STRATEGIES = ["none", "teacher", "ground_truth", "confidence"]
TEXTS = ["a dog has 4 legs, how many have 3?", "half of 90?"]


def a_recipe(url: str, priming: str, **task: Any) -> Recipe:
    teacher = {"kind": "openai", "model": "big", "base_url": url, "smoke_rows": 0, "priming": priming}
    task = {"kind": "generate", "instruction": "How many?", "match": "number"} | task
    return Recipe.model_validate({"name": "asked", "task": task, "data": {"pool": "p.jsonl"}, "teacher": teacher})


def says(call: Call) -> Answer:
    """More words where the question was primed."""
    why = "it is so" + " and so on" * any(words in call.text for words in (*BEFORE.values(), *AFTER.values()))
    return Answer(json.dumps({"rationale": why, "answer": "12"}))


def asked(recipe: Recipe, folder: Path) -> list[Any]:
    rows = tuple(Row(row_id(text), text, None, "train") for text in TEXTS)
    teacher = open_teacher(recipe, folder / "recipe.yaml", folder, rows)
    try:
        annotate(recipe, Dataset(rows), teacher, lambda _: True, folder)
    finally:
        teacher.close()
    return accepted(folder, "train")


@given(st.text(), st.sampled_from(STRATEGIES), st.booleans())
def test_the_question_can_be_had_back(text: str, priming: str, has_choices: bool) -> None:
    whole = primed(text, priming, has_choices)
    assert text in whole
    assert (whole == text) == (priming == "none")
    assert unprimed(whole, priming) == text


def test_another_priming_asks_otherwise_about_the_same_rows_and_the_student_never_sees_it(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    tokenizer, seen, rows, prompts = load_tokenizer(tiny_base), {}, {}, {}
    with ScriptedServer(says) as server:
        for priming in STRATEGIES:
            recipe = a_recipe(server.url, priming)
            before = len(server.calls)
            rows[priming] = asked(recipe, tmp_path / priming)
            seen[priming] = sorted(call.text for call in server.calls[before:])
            task = build_task(recipe, base_of(tiny_base), tokenizer)
            examples = [make_example(task, tokenizer, row.text, answer) for row, answer in rows[priming]]
            prompts[priming] = [branch.prompt for example in examples for branch in example.branches]
        again = len(server.calls)
        asked(a_recipe(server.url, "teacher"), tmp_path / "again")
        assert len(server.calls) == again  # the same questions are in the cache
    assert seen == {name: sorted(primed(text, name) for text in TEXTS) for name in STRATEGIES}
    assert len({text for texts in seen.values() for text in texts}) == 4 * len(TEXTS)
    plain = [(row, dataclasses.replace(answer, **UNLIKE)) for row, answer in rows["none"]]
    for name in STRATEGIES[1:]:
        assert [(row, dataclasses.replace(answer, **UNLIKE)) for row, answer in rows[name]] == plain
        assert prompts[name] == prompts["none"]
        assert all(answer.rationale == "it is so and so on" for _, answer in rows[name])
        assert all(
            answer.completion_tokens > plain_one.completion_tokens
            for (_, answer), (_, plain_one) in zip(rows[name], rows["none"], strict=True)
        )


UNLIKE: dict[str, Any] = {"rationale": None, "raw": "", "prompt_tokens": 0, "completion_tokens": 0, "latency_ms": None}


def base_of(folder: Path) -> Any:
    from edgestill.distill.base import prepare_base

    return prepare_base(str(folder))


def test_what_primes_is_part_of_what_the_answers_depend_on() -> None:
    found = {teacher_fingerprint(a_recipe("http://localhost:1/v1", name), Path("recipe.yaml")) for name in STRATEGIES}
    assert len(found) == 4


@pytest.mark.parametrize("priming", STRATEGIES)
def test_the_server_knows_the_apps_unprimed_question(priming: str) -> None:
    recipe = a_recipe("http://localhost:1/v1", priming)
    prompt, plain = teacher_prompt(recipe), a_recipe("http://localhost:1/v1", "none")
    request = Prompter(plain, "host", "big", first_dialect(plain)).first("half of 90?")
    found = find(prompt, [(m["role"], m["content"]) for m in request.body["messages"]])
    assert found is not None
    assert (found.fields, found.keys) == ({"text": "half of 90?"}, ("rationale", "answer"))
    assert not any(
        words.strip() in json.dumps(dataclasses.asdict(prompt)) for words in (*BEFORE.values(), *AFTER.values())
    )


def test_recorded_answers_cannot_be_primed() -> None:
    with pytest.raises(ValueError, match="priming teacher is for a teacher that is asked; recorded answers are as"):
        Recipe.model_validate(
            {"name": "x", "task": {"instruction": "?", "labels": ["a", "b"]}, "data": {"pool": "p"}}
            | {"teacher": {"kind": "replay", "path": "t.jsonl", "priming": "teacher"}}
        )


def test_a_repair_shows_the_primed_question_again() -> None:
    recipe = a_recipe("http://localhost:1/v1", "confidence")
    prompter = Prompter(recipe, "host", "big", first_dialect(recipe))
    first = prompter.first("half of 90?")
    repair = prompter.repair(first, "no idea", "it is empty", "half of 90?")
    assert repair.body["messages"][1] == first.body["messages"][1]
    assert repair.body["messages"][1]["content"] == primed("half of 90?", "confidence")
