"""Answers that are written: one spelling for each, found where people put them, compared alike everywhere."""

import re
import unicodedata
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_runs import a_task

from edgestill.runtime.written import canonical, overlap, read_answer, reason_in

NUMBERS = {
    "$1,234.50": "1234.5",
    "-$5": "-5",
    "$-5": "-5",
    "\u22125": "-5",
    "007": "7",
    "42.": "42",
    "50%": "50",
    "3e3": "3000",
    "-0.0": "0",
    "1/2": "0.5",
    "-3 / 4": "-0.75",
    "1/3": "0.333333333333",
    "3/0": "",
    "1 1/2": "1.5",
    "1 1/3": "1.33333333333",
    "4/3": "1.33333333333",
    "-$2 3/4 cups": "-2.75",
    "\u00bd": "0.5",
    "-1\u00bd": "-1.5",
    "3 \u00be": "3.75",
    "1,000 1/2": "1000.5",
    "1 3/2": "1.5",
    "1\n1/2": "0.5",
    "5 m\u00b2": "5",
    "1\u202f234 km": "1234",
    "pages 10\u201320": "20",
    "10-3": "3",
    "3 of 12,000 apples, so 9 are left": "9",
    "none": "",
    "": "",
}


@pytest.mark.parametrize(("written", "number"), NUMBERS.items())
def test_a_number_has_one_spelling_however_it_is_written(written: str, number: str) -> None:
    assert canonical(written, "number") == number


@given(value=st.decimals(-(10**9), 10**9, places=3), unit=st.sampled_from(["", " apples", ".", "%", ")"]))
def test_a_number_is_read_back_with_separators_currency_and_zeros(value: Decimal, unit: str) -> None:
    plain = canonical(f"{value}", "number")
    assert Decimal(plain) == value
    assert canonical(f"so it is {value:,.5f}{unit}", "number") == plain
    assert canonical(f"{'-' if value < 0 else ''}${abs(value):,}", "number") == plain


@given(text=st.text(), match=st.sampled_from(["exact", "number", "f1"]))
def test_an_answer_that_is_canonical_stays_as_it_is(text: str, match: str) -> None:
    once = canonical(text, match)
    assert canonical(once, match) == once


@pytest.mark.parametrize("text", ["\u00df\u0301", "\u03aa\u0301", "('\u1e9e\u0301')."])
def test_so_does_one_whose_case_folding_undoes_the_normal_form(text: str) -> None:
    once = canonical(text, "exact")
    assert canonical(once, "exact") == once != ""


@given(words=st.lists(st.text("abcdXYZ09-", min_size=1), min_size=1), blank=st.sampled_from([" ", "\n\t", "\u00a0 "]))
def test_case_blanks_outer_punctuation_and_unicode_forms_do_not_count(words: list[str], blank: str) -> None:
    plain = canonical(" ".join(words), "exact")
    assert canonical(f' **"{blank.join(words).upper()}."** ', "exact") == plain
    assert canonical(unicodedata.normalize("NFD", "Caf\u00e9"), "exact") == "caf\u00e9"


@pytest.mark.parametrize(("one", "other"), [("C++", "C"), ("C#", "C"), ("-5", "5"), ("50%", "50"), ("a b", "ab")])
def test_what_carries_meaning_stays(one: str, other: str) -> None:
    assert canonical(one, "exact") != canonical(other, "exact")


@given(a=st.text("ab c,."), b=st.text("ab c,."))
def test_the_overlap_of_two_texts_is_symmetric_a_share_and_whole_for_equals(a: str, b: str) -> None:
    there, back = overlap(a, b, "f1"), overlap(b, a, "f1")
    assert there == back
    assert 0 <= there <= 1
    assert overlap(a, a, "f1") == bool(re.search("[abc]", a))


def test_the_overlap_of_tokens_is_the_harmonic_mean_of_precision_and_recall() -> None:
    precision, recall = 3 / 4, 3 / 3
    assert overlap("The cat, sat down", "the cat sat", "f1") == pytest.approx(2 * precision * recall / 1.75)
    assert overlap("the the the", "the", "f1") == pytest.approx(0.5)
    assert overlap("$1,000.00", "1000", "number") == 1.0
    assert overlap("the cat", "the cat sat", "exact") == 0.0


@pytest.mark.parametrize("match", ["exact", "number", "f1"])
def test_no_answer_is_never_right(match: str) -> None:
    assert overlap("", "", match) == 0.0


def test_the_last_match_of_the_pattern_counts_and_its_group_where_it_has_one() -> None:
    text = "first #### 3 and then #### 1,200"
    assert read_answer(text, a_task(answer_pattern=r"####\s*(\S+)")) == "1200"
    assert read_answer(text, a_task(answer_pattern=r"#+ \d")) == "1"
    assert read_answer(text, a_task()) == "1200"
    assert read_answer("no such thing", a_task(answer_pattern=r"####\s*(\S+)")) == ""


def test_a_group_that_took_no_part_is_no_answer() -> None:
    assert read_answer("yes", a_task(match="exact", answer_pattern=r"yes(no)?")) == ""


def test_the_answer_of_a_chain_stands_behind_the_last_answer_line() -> None:
    chain = a_task(chain=True)
    written = "4 twos\nAnswer: 3? no\nAnswer: 8 legs"
    assert read_answer(written, chain) == "8"
    assert read_answer(written, a_task(chain=True, match="exact")) == "8 legs"
    assert reason_in(written, chain) == "4 twos\nAnswer: 3? no"
    assert read_answer("8 legs, but cut before the ans", chain) == ""
    assert read_answer("Answer: 8", chain) == "8"
    assert reason_in("Answer: 8", chain) == ""
    assert reason_in("8 legs, but cut before the ans", chain) == "8 legs, but cut before the ans"
