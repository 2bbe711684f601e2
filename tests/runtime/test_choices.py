"""Choices below a text: what is written is read back, and what cannot be is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_runs import choosing_task

from edgestill.runtime.choices import choices_of, split_choices, with_choices
from edgestill.runtime.decode import task_probabilities
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.task import Task, load_tokenizer

CHOICES = st.lists(st.text("ab AB)(\n", min_size=1).filter(str.strip), min_size=2, max_size=26)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Any) -> Any:
    return load_tokenizer(Path(smollm2.folder))


@pytest.fixture(scope="module")
def task(tokenizer: Any) -> Task:
    return choosing_task(tokenizer)


@given(text=st.text("ab\nAB) ", min_size=1), choices=CHOICES)
def test_choices_are_read_back_line_breaks_and_brackets_included(text: str, choices: list[str]) -> None:
    written = with_choices(text, choices)
    assert split_choices(written) == (text, [" ".join(choice.split()) for choice in choices])


@given(text=st.text("ab\nAB) "))
def test_a_text_without_choices_has_none_and_other_lines_are_text(text: str) -> None:
    assert choices_of(text + "\nend") == []
    assert choices_of("Which?\nA) only one") == []
    assert choices_of("Which?\nA) one\nC) three") == []


@pytest.mark.parametrize(
    "choices", [["one"], [str(i) for i in range(27)], "yes", ["yes", " \n "], {"a": 1, "b": 2}, 5, {"a", "b"}]
)
def test_choices_that_are_none_are_refused_in_one_line(choices: Any) -> None:
    with pytest.raises(EdgestillError, match=r"wanted (a list of 2 to 26 choices|text)"):
        with_choices("Which?", choices)


def test_fields_and_a_text_with_its_choices_below_are_filled_alike(task: Task) -> None:
    by_fields = task.fill({"thing": "grass", "colours": ["red", "green"]})
    assert by_fields == "grass is\nA) red\nB) green"
    assert task.fill("grass\nA) red\nB) green") == by_fields
    assert task.choices_in(by_fields) == ["red", "green"]


def test_missing_and_surplus_choices_are_named(task: Task) -> None:
    with pytest.raises(EdgestillError, match="the field 'colours' is missing"):
        task.fill({"thing": "grass"})
    with pytest.raises(EdgestillError, match="found 0 choices"):
        task.fill("grass")
    with pytest.raises(EdgestillError, match=r"ends in 5 choices, wanted 2 to 4"):
        task.choices_in(with_choices("x", list("abcde")))


def test_letters_without_a_choice_get_nothing_and_the_others_all_of_it(task: Task) -> None:
    logits = np.zeros(49152, np.float32)
    logits[task.labels[3].token_id] = 50.0
    chances = task_probabilities(logits, task, with_choices("x", ["a", "b", "c"]))
    assert chances.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    with pytest.raises(EdgestillError, match="ends in 0 choices"):
        task_probabilities(logits, task)


@pytest.mark.parametrize("rule", ["cut_tail", "cut_head"])
def test_a_long_text_is_cut_above_its_choices(tokenizer: Any, rule: str) -> None:
    task = replace(choosing_task(tokenizer), max_text_tokens=24, too_long=rule)
    text = with_choices("start " + "word " * 60 + "finish", ["red or so", "green"])
    kept = task.cut(tokenizer, text)
    assert choices_of(kept) == ["red or so", "green"]
    assert len(tokenizer.encode(kept).ids) <= 24
    assert kept.startswith("start word") if rule == "cut_tail" else "word finish\nA)" in kept
