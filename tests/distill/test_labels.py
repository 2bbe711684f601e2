"""Which token answers for a label: the first of its name where names part at once, else a token of its own."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.distill.labels import answer_words, build_task
from edgestill.distill.recipe import Recipe
from edgestill.runtime.errors import UsageError
from edgestill.runtime.task import Task, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(smollm2: Any) -> Any:
    return load_tokenizer(Path(smollm2.folder))


def task_of(base: Any, tokenizer: Any, labels: list[str], answer: str = "auto", **changes: Any) -> Task:
    recipe = Recipe.model_validate(
        {
            "name": "labels",
            "task": {"instruction": "Which?", "labels": labels, "answer": answer, **changes},
            "data": {"pool": "pool.jsonl"},
            "teacher": {"kind": "replay", "path": "teacher.jsonl"},
        }
    )
    return build_task(recipe, base, tokenizer)


def first_id(tokenizer: Any, text: str) -> int:
    return int(tokenizer.encode(text, add_special_tokens=False).ids[0])


def test_auto_takes_the_path_when_the_names_part_at_once(smollm2: Any, tokenizer: Any) -> None:
    task = task_of(smollm2, tokenizer, ["lights", "heating", "none"])
    assert task.answer == "path"
    assert [label.completion for label in task.labels] == [" lights", " heating", " none"]
    assert [label.token_id for label in task.labels] == [first_id(tokenizer, f" {n}") for n in task.label_names]


@pytest.mark.parametrize("labels", [["no", "no idea"], ["card lost", "card stolen"], ["1", "2"]])
def test_auto_takes_tokens_when_two_names_begin_alike(smollm2: Any, tokenizer: Any, labels: list[str]) -> None:
    task = task_of(smollm2, tokenizer, labels)
    assert task.answer == "token"
    assert len({label.token_id for label in task.labels}) == 2


def test_77_labels_that_begin_alike_get_77_distinct_answer_tokens(smollm2: Any, tokenizer: Any) -> None:
    names = [f"card_payment_{i}" for i in range(77)]
    task = task_of(smollm2, tokenizer, names)
    assert task.answer == "token"
    assert len({label.token_id for label in task.labels}) == 77
    assert task.label_names == names
    assert all(label.completion.endswith(" " + label.name) for label in task.labels)


def test_as_many_labels_as_possible_answer_with_a_word_of_their_own_name(tokenizer: Any) -> None:
    names = ["card_lost", "card_stolen", "card", "cardPIN blocked", "42", "card 43"]
    assert answer_words(names, tokenizer) == [" lost", " stolen", " card", " blocked", " A", " B"]
    # the second can only have what the first took before it
    assert answer_words(["on top", "on", "top off"], tokenizer) == [" top", " on", " off"]
    # the longer name goes without
    assert answer_words(["cancel", "cancel order", "order"], tokenizer) == [" cancel", " A", " order"]


def test_a_path_that_does_not_part_is_refused_with_the_two_names(smollm2: Any, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="'no' and 'no idea' begin with the same token - use token"):
        task_of(smollm2, tokenizer, ["yes", "no", "no idea"], answer="path")


def test_more_labels_than_answer_tokens_are_refused_with_both_numbers(smollm2: Any, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"9999 labels, but the vocabulary has only \d+ answer tokens"):
        task_of(smollm2, tokenizer, [f"card {i}" for i in range(9999)])


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(
        st.text("ab1 '-_éß你😀", min_size=1, max_size=6).filter(lambda s: s == s.strip()),
        min_size=2,
        max_size=8,
        unique=True,
    ),
    answer=st.sampled_from(["auto", "token"]),
)
def test_the_answer_token_is_what_the_student_is_trained_to_write_first(
    smollm2: Any, tokenizer: Any, labels: list[str], answer: str
) -> None:
    task = task_of(smollm2, tokenizer, labels, answer)
    for label in task.labels:
        assert first_id(tokenizer, label.completion) == label.token_id
    assert len({label.token_id for label in task.labels}) == len(labels)


def test_a_task_knows_the_bases_end_of_sequence_and_no_beginning(smollm2: Any, tokenizer: Any) -> None:
    task = task_of(smollm2, tokenizer, ["red", "green"])
    assert task.bos_token_id is None
    assert task.eos_token_id == tokenizer.token_to_id("<|im_end|>")


def test_without_rationales_there_is_no_second_suffix(smollm2: Any, tokenizer: Any) -> None:
    assert task_of(smollm2, tokenizer, ["red", "green"]).rationale_suffix == "\nReason:"
    assert task_of(smollm2, tokenizer, ["red", "green"], rationale=False).rationale_suffix is None
