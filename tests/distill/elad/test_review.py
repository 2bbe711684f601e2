"""Reviews as teachers write them: what is read of them, and what is refused as it says two things or too little."""

import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.distill.elad.review import Findings, Review, find_error, read_review
from edgestill.distill.teacher.parse import Reading

LABELS = ("red", "green")


def match(said: object) -> str | None:
    return str(said).strip().lower() if str(said).strip().lower() in LABELS else None


def read(said: object, steps: int = 3) -> Review | Reading:
    return read_review(said if isinstance(said, str) else json.dumps(said), steps, match)


def an_object(**changes: Any) -> dict[str, Any]:
    whole = {"verdicts": ["CORRECT", "WRONG"], "first_error": 2, "revised_steps": ["it is a frog"], "answer": "green"}
    return {key: value for key, value in (whole | changes).items() if value != "absent"}


WRONG_AT_2 = [
    an_object(),
    an_object(verdicts="absent"),
    an_object(first_error="absent"),
    an_object(verdicts=[True, False], first_error="2"),
    an_object(verdicts=["Step 1: correct", "Step 2: incorrect - no tomato"], first_error="Step 2"),
    an_object(verdicts=[{"step": 1, "verdict": "CORRECT"}, {"step": 2, "verdict": "WRONG"}]),
    an_object(verdicts={"1": "correct", "2": "wrong", "3": "wrong"}),
    an_object(verdicts=["CORRECT", "WRONG", "CORRECT"]),
    an_object(revised_steps="it is a frog\n"),
    an_object(revised_steps=[{"step": 2, "text": "it is a frog"}], first_error=2.0),
    an_object(answer=" Green "),
    {"review": an_object()},
    {"first_error_step": 2, "corrected_steps": ["it is a frog"], "label": "green", "verdicts": ["no error", "wrong"]},
    "Sure! Here is my review:\n```json\n" + json.dumps(an_object(), indent=2) + "\n```\nGood luck.",
    str(an_object()).replace("2, 'rev", "2,\n 'rev") + " as asked",
    "<think>{'first_error': 1}</think>" + json.dumps(an_object()),
    json.dumps(an_object()) * 2,
    "Step 1: CORRECT\nStep 2: WRONG, a frog is no tomato.\nRevised steps:\nit is a frog\nAnswer: green",
    "**Step 1** - correct.\n- Step 2 is incorrect\nFirst error step: 2\nCorrected: it is a frog\n\nAnswer: **green**",
    "1. Correct\n2. Wrong: frogs are green\nFirst Error: Step 2 (the frog)\nRevised: it is a frog\nAnswer: green",
]


@pytest.mark.parametrize("said", WRONG_AT_2, ids=str)
def test_the_first_wrong_step_and_what_stands_there_instead_are_found(said: object) -> None:
    found = read(said)
    assert isinstance(found, Review), found
    assert (found.first_error, found.revised_steps, found.answer) == (2, ("it is a frog",), "green")


NO_ERROR = [
    an_object(verdicts=["CORRECT"] * 3, first_error=None, revised_steps=[]),
    an_object(verdicts=["CORRECT"] * 3, first_error=None, revised_steps=["the steps again"]),
    an_object(verdicts="absent", first_error="none", revised_steps="absent"),
    an_object(verdicts=["correct", "right", "ok"], first_error="absent"),
    "Step 1: correct\nStep 2: correct\nStep 3: correct\nFirst error: none\nAnswer: green",
    an_object(verdicts=["CORRECT"] * 3, first_error=0, revised_steps=[]),
    an_object(verdicts=["correct", "error-free", "ok"], first_error=-1, revised_steps=[]),
]


@pytest.mark.parametrize("said", NO_ERROR, ids=str)
def test_a_review_without_an_error_leaves_the_steps_alone(said: object) -> None:
    found = read(said)
    assert isinstance(found, Review), found
    assert (found.first_error, found.revised_steps, found.answer) == (None, (), "green")


REFUSED = [
    (an_object(first_error=4, verdicts="absent"), "unparsable", "first_error is 4, but the student wrote 3 steps"),
    (an_object(first_error=0), "unparsable", "first_error is 0"),
    (an_object(first_error=3), "unparsable", "first_error is 3, but the verdict on step 2 is WRONG"),
    (an_object(first_error=1), "unparsable", "first_error is 1, but the verdict on step 1 is CORRECT"),
    (an_object(first_error=None), "unparsable", "first_error is None, but the verdict on step 2 is WRONG"),
    (an_object(verdicts=["CORRECT"] * 4, first_error=None), "unparsable", "a verdict is on step 4"),
    (an_object(verdicts=["CORRECT"], first_error="absent"), "unparsable", "no first_error, and no verdict on step 2"),
    (an_object(verdicts=["CORRECT", "perhaps"]), "unparsable", "the verdict 'perhaps'"),
    (an_object(first_error="the second"), "unparsable", "first_error is 'the second'"),
    (an_object(first_error=1.5), "unparsable", "first_error is 1.5"),
    (an_object(first_error=True, verdicts="absent"), "unparsable", "first_error is True"),
    (an_object(revised_steps=[]), "unparsable", "step 2 is wrong, but revised_steps is empty"),
    (an_object(revised_steps=["2."]), "unparsable", "step 2 is wrong, but revised_steps is empty"),
    (an_object(revised_steps=[{"step": 2}]), "unparsable", "something else than texts"),
    (an_object(answer="absent"), "unparsable", "no answer"),
    (an_object(answer=" "), "unparsable", "no answer"),
    (an_object(answer="blue"), "label_not_allowed", "answer is 'blue'"),
    (an_object(verdicts="absent", first_error="absent"), "unparsable", "no JSON object"),
    ("The student did well.", "unparsable", "no JSON object"),
    ("Step 1: correct\nStep 3: wrong\nRevised steps: x\nAnswer: green", "unparsable", "no verdict on step 2"),
    ("First error: 1\nFirst error: 2\nRevised steps: x\nAnswer: green", "unparsable", "several first errors"),
    (json.dumps(an_object()) + json.dumps(an_object(answer="red")), "unparsable", "several reviews"),
    ("", "unparsable", "no JSON object"),
]


@pytest.mark.parametrize(("said", "reason", "detail"), REFUSED, ids=str)
def test_a_review_that_contradicts_itself_or_lacks_something_is_refused_with_the_reason(
    said: object, reason: str, detail: str
) -> None:
    found = read(said)
    assert isinstance(found, Reading), found
    assert (found.label, found.reason) == (None, reason)
    assert detail in found.detail


@given(st.integers(1, 6), st.data())
def test_verdicts_alone_say_the_first_error_and_a_stated_one_must_be_it(steps: int, data: st.DataObject) -> None:
    right = data.draw(st.lists(st.booleans(), min_size=steps, max_size=steps))
    stated = data.draw(st.none() | st.integers(1, steps))
    first = right.index(False) + 1 if False in right else None
    said = {"verdicts": ["CORRECT" if each else "WRONG" for each in right], "answer": "red"}
    alone, both = find_error(json.dumps(said), steps), find_error(json.dumps(said | {"first_error": stated}), steps)
    assert isinstance(alone, Findings)
    assert alone.first_error == first
    assert isinstance(both, Findings) == (stated == first)


@given(st.text(max_size=200))
def test_no_text_at_all_makes_the_parser_fail(text: str) -> None:
    for said in (text, f"Step 1: {text}\nFirst error: {text}", json.dumps({"first_error": text, "verdicts": [text]})):
        found = read(said)
        assert isinstance(found, Review) or found.reason in ("unparsable", "label_not_allowed")


@pytest.mark.parametrize(
    "unit", ["Step 1: correct\n", "\n", " *", "first error", "revised:\n", "{'a': ", "1. ", "answer: "]
)
def test_a_long_review_is_read_in_a_moment(unit: str) -> None:
    start = time.perf_counter()
    read(unit * (40_000 // len(unit)))
    assert time.perf_counter() - start < 2


DATA = Path(os.environ.get("EDGESTILL_DATA", "")) / "mr_gsm8k"
LINE = re.compile(r"^.*first error step.*$", re.IGNORECASE | re.MULTILINE)


@pytest.mark.skipif("EDGESTILL_DATA" not in os.environ, reason="EDGESTILL_DATA names no folder with mr_gsm8k/")
def test_the_first_error_of_recorded_reviews_is_found_and_those_that_say_two_things_are_not_guessed() -> None:
    for path in sorted(DATA.glob("*.jsonl")):
        with_line, without = Counter[str](), Counter[str]()
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            wanted = int(re.sub(r"\D", "", str(record["review_error_step"])))
            for review, kinds in ((record["review"], with_line), (LINE.sub("", record["review"]), without)):
                found = find_error(review, len(record["student_steps"]))
                right = "found" if isinstance(found, Findings) and found.first_error == wanted else "another step"
                kinds[re.sub(r"\d+", "N", found.detail) if isinstance(found, Reading) else right] += 1
        for kinds, what in ((with_line, "whole"), (without, "without the line that names the step")):
            print(f"\n{path.stem}, {what}: {kinds['found'] / kinds.total():.1%} found; {dict(kinds)}")
        assert with_line["found"] >= 0.99 * with_line.total()
        assert with_line["another step"] == 0
        assert without["another step"] <= 0.01 * without.total()
