"""Explanations as steps: nothing is lost, nothing is empty, and a correction begins where it should."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.distill.elad.steps import bare, join_steps, prefixes, revised, split_steps

PIECES = st.sampled_from(
    [
        "the sum is 3.5",
        "so it is red.",
        "Step 2: add",
        "\n",
        "\n\n",
        " ",
        "1.",
        "(2)",
        "e.g. this",
        "why?",
        "- so",
        "。",
        "a\tb",
    ]
)
TEXTS = st.lists(PIECES, max_size=12).map(" ".join) | st.text(max_size=80)


def without_blanks(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(TEXTS)
def test_joined_steps_give_the_text_back_up_to_blanks(text: str) -> None:
    assert without_blanks(join_steps(split_steps(text), text)) == without_blanks(text)


@given(TEXTS)
def test_no_step_is_empty_or_has_blanks_around_it(text: str) -> None:
    steps = split_steps(text)
    assert all(step == step.strip() != "" for step in steps)
    assert bool(steps) == bool(text.strip())


@given(TEXTS)
def test_each_prefix_is_a_step_longer_than_the_one_before(text: str) -> None:
    steps, found = split_steps(text), prefixes(text)
    assert len(found) == len(steps) + 1
    assert found[0] == ""
    assert found[-1] == text.strip()
    for i, step in enumerate(steps):
        assert without_blanks(found[i + 1]) == without_blanks(found[i] + step)


@given(TEXTS)
def test_a_correction_keeps_the_steps_before_the_first_error_and_no_other(text: str) -> None:
    steps = split_steps(text)
    for first_error in range(1, len(steps) + 1):
        found = revised(text, first_error, ["the teacher went on"])
        kept = join_steps(steps[: first_error - 1], text)
        assert found.startswith(kept)
        assert without_blanks(found) == without_blanks(kept + "the teacher went on")
    assert revised(text, None, ["ignored"]) == text


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("A costs 3.5 each, e.g. here. B is 2! So? Yes", ["A costs 3.5 each, e.g. here.", "B is 2!", "So?", "Yes"]),
        ("Step 1: a. b. Step 2: c", ["Step 1: a. b.", "Step 2: c"]),
        ("1. Foo. Bar.\n\n2. Baz", ["1. Foo. Bar.", "2. Baz"]),
        ("1. Foo. 2. Bar.", ["1. Foo.", "2. Bar."]),
        ('Dr. Smith said "no." Then he left.', ['Dr. Smith said "no."', "Then he left."]),
        ("一。二。三", ["一。", "二。", "三"]),
        ("one step", ["one step"]),
        (" \n ", []),
    ],
)
def test_steps_are_lines_or_marked_steps_or_sentences(text: str, steps: list[str]) -> None:
    assert list(split_steps(text)) == steps


@pytest.mark.parametrize(
    "step", ["Step 2: so it is", "2. so it is", "(2) so it is", "- so it is", "**2.** so it is", "2) so it is"]
)
def test_a_number_at_the_head_of_a_step_is_not_part_of_it(step: str) -> None:
    assert bare(step) == "so it is"
    assert revised("first. second.", 2, [step]) == "first. so it is"
    assert revised("1. first\n2. second", 2, [step]) == f"1. first\n{step}"


def test_what_is_no_head_stays() -> None:
    assert [bare(step) for step in ("3.5 is more", "12 apples", "step up", "a) b")] == [
        "3.5 is more",
        "12 apples",
        "step up",
        "a) b",
    ]


def test_steps_of_the_students_that_the_teacher_repeats_stand_there_once() -> None:
    assert revised("first. second. third.", 3, ["1. first.", "2. second.", "3. new."]) == "first. second. new."
    assert revised("first. second. third.", 3, ["second.", "new."]) == "first. second. second. new."  # who knows why
