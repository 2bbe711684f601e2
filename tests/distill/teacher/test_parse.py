"""What counts as an answer, and by which reason everything else is rejected."""

import json
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.forms import OneLabel
from edgestill.distill.teacher.parse import Reading, read_response

LABELS = ["card_lost", "card_stolen", "card", "no", "other?"]
REASONS = {"refused", "empty", "unparsable", "label_not_allowed"}

names = st.text(min_size=1, max_size=12).filter(lambda text: text == text.strip())
label_sets = st.lists(names, min_size=2, max_size=6, unique=True)
any_text = st.text(st.characters(), max_size=300)  # lone surrogates too
PIECES = ["{", "}", "[", "]", '"label"', "'label'", ":", ",", '"card"', "'no'", "label: ", "\n", "<think>", "</think>"]
PIECES += [
    "```json",
    "null",
    "1e999",
    "NaN",
    "9" * 5000,
    "\\",
    "\\ud800",
    "I'm sorry, ",
    "card_lost",
    '{"label": "card"}',
]
shreds = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


def read_text(content: str, labels: list[str]) -> Reading:
    return OneLabel(TaskSection.model_validate({"instruction": "Which?", "labels": labels})).read(content, "")


READ = [
    '{"rationale": "gone", "label": "card_lost"}',
    '{"label": "card_lost", "rationale": "gone"}',
    ' \n{"label":"card_lost"}\n ',
    '```json\n{"rationale": "gone",\n "label": "card_lost"}\n```',
    '```\n{"label": "card_lost"}\n```',
    'Here you go: {"rationale": "gone", "label": "card_lost"}. Anything else?',
    'The set {a, b} and {"x": 1} came first. {"label": "card_lost"}',
    'The shape {"label": ...} is clear. {"label": "card_lost"}',
    "{'rationale': \"it's gone\", 'label': 'card_lost'}",
    "{'rationale': 'gone', 'label': 'card_lost', 'sure': True,}",
    '{"rationale": "gone", "label": "card_lost",}',
    r"{'rationale': 'a \d', 'label': 'card_lost'}",
    '{"rationale": "two\nlines\tand a tab", "label": "card_lost"}',
    '{"Label ": "card_lost"}',
    '{"answer": {"rationale": "gone", "label": "card_lost"}}',
    '{"answer": {"answer": {"label": "card_lost"}}}',
    '[{"label": "card_lost"}]',
    '{"label": "card_lost"}\n{"label": "card_lost"}',
    '{"label": "card_lost", "label": "card_lost"}',
    '{"label": "purple"} No, that is none. {"label": "card_lost"}',
    '{"label": "card_lost", "others": [{"label": "card"}]}',
    '{"rationale": "he wrote {\'label\': \'no\'} and {\\"label\\": \\"card\\"}", "label": "card_lost"}',
    '{"rationale": "Unfortunately, I can\'t see more than a lost card", "label": "card_lost"}',
    '{"rationale": "I\'m sorry, as an AI I cannot", "label": "card_lost"}',
    "I'm sorry to hear that.\nLabel: card_lost",
    'Sorry, here it is: {"label": "card_lost"}',
    '{"label": "Card Lost"}',
    '{"label": " card-lost. "}',
    '{"label": "**CARD_LOST**!"}',
    '{"label": "\u201ccard lost\u201d"}',
    '{"label": "\uff43\uff41\uff52\uff44\uff3f\uff4c\uff4f\uff53\uff54"}',
    "card_lost",
    '"card_lost".',
    "`Card lost`",
    "```\ncard_lost\n```",
    "Label: card_lost",
    "**Final label:** `card_lost`",
    "Rationale: it is gone.\nLabel: card_lost",
    "Answer = card lost",
    "Label:\ncard_lost",
    'He said "hi" {\n  "rationale": "He said "hi" to me",\n  "label": "card_lost"\n}',
    '<think>{"label": "no"} or card?</think>{"label": "card_lost"}',
    'it may be {"label": "no"}</think>\n{"label": "card_lost"}',
    "<think>one</think>\n<think>two</think>\n\ncard_lost",
    '{"rationale": "they typed </think> twice", "label": "card_lost"}',
    '\ufeff{"label": "card_lost"}',
    '{"label": "card_lost"' + ', "n": 1' * 50_000 + "}",
]


@pytest.mark.parametrize("content", READ, ids=range(len(READ)))
def test_an_answer_is_read_in_whatever_shape_it_comes(content: str) -> None:
    assert read_text(content, LABELS).label == "card_lost"


NOT_READ = [
    ("", "empty"),
    (" \n\t", "empty"),
    ("<think>I think of nothing else</think>\n", "empty"),
    ('<think>perhaps {"label": "card"} or', "empty"),
    ("I think it is card_lost.", "unparsable"),
    ("card_lost because it is gone", "unparsable"),
    ("card_lost or card_stolen", "unparsable"),
    ("The label card_lost fits, card does not", "unparsable"),
    ('{"rationale": "it is card_lost"}', "unparsable"),
    ("{\"rationale\": \"he wrote {'label': 'no'}\"}", "unparsable"),
    ('{"rationale": "he wrote {\\"label\\": \\"no\\"}"}', "unparsable"),
    ('{"rationale": "she\nLabel: no"}', "unparsable"),
    ('{"label": "no", "label": "card"}', "unparsable"),
    ('{"label": "no", "LABEL": "card"}', "unparsable"),
    ('{"label": "no"} or {"label": "card"}', "unparsable"),
    ("Label: no\nLabel: card", "unparsable"),
    ('{"answers": [{"label": "no"}, {"label": "card"}]}', "unparsable"),
    ('{"wrong": {"label": "no"}, "label": "card"', "unparsable"),
    ('{"label": {"name": "no"}}', "unparsable"),
    ('{"label": ["no"]}', "unparsable"),
    ('{"label": null}', "unparsable"),
    ('{"label": 1}', "unparsable"),
    ('{"label": true}', "unparsable"),
    ('{"label": NaN, "LABEL": NaN}', "unparsable"),
    ("{'label': None}", "unparsable"),
    ("{[]: 1, 'label': 'no'}", "unparsable"),
    ("{'label': 'no', **{}}", "label_not_allowed"),
    ('{"label": ""}', "label_not_allowed"),
    ('{"label": "..."}', "label_not_allowed"),
    ('{"label": "purple"}', "label_not_allowed"),
    ('{"label": "card_lost, card"}', "label_not_allowed"),
    ('{"label": "card_los"}', "label_not_allowed"),
    ('{"label": "\\ud800"}', "label_not_allowed"),
    ("Label: purple", "label_not_allowed"),
    ("Label: card_lost or card", "label_not_allowed"),
    ("{'label': 'purple'}", "label_not_allowed"),
    ("I'm sorry, but I can't help with that.", "refused"),
    ("I\u2019m sorry, but I can\u2019t help with a card_lost.", "refused"),
    ("I am unable to say.", "refused"),
    ("Sorry, but no.", "refused"),
    ("I cannot assist.", "refused"),
    ("As an AI, I have no opinion", "refused"),
    ("**Unfortunately, I can't say.**", "refused"),
    ('I\'m sorry, no answer. {"label": null}', "refused"),
    ("Sorry but no.", "refused"),
    ("I apologise, no.", "refused"),
    ("I must decline.", "refused"),
    ("Unfortunately, it is not clear.", "unparsable"),
    ("He says: I'm sorry, I cannot find it.", "unparsable"),
    ("{'label', 'no'}", "unparsable"),
    ("Unfortunately, I think it is card_lost", "unparsable"),
]


@pytest.mark.parametrize(("content", "reason"), NOT_READ, ids=range(len(NOT_READ)))
def test_all_else_is_rejected_by_its_reason(content: str, reason: str) -> None:
    reading = read_text(content, LABELS)
    assert (reading.label, reading.rationale, reading.reason) == (None, None, reason)
    assert reading.detail


HOW_IT_ENDED: list[tuple[dict[str, Any], str]] = [
    ({"content": '{"label": "no"}', "finish_reason": "content_filter"}, "content_filter"),
    ({"finish_reason": "content_filter", "refusal": "no"}, "content_filter"),
    ({"content": None, "refusal": "I will not", "finish_reason": "stop"}, "refused"),
    ({"content": '{"label": "no"}', "refusal": "I will not"}, "refused"),
    ({"content": '{"label": "no", "rationale": "it', "finish_reason": "length"}, "truncated"),
    ({"content": "", "finish_reason": "length", "usage": {"reasoning_tokens": None}}, "truncated"),
    ({"content": " ", "finish_reason": "length", "usage": {"reasoning_tokens": 9}}, "reasoning_used_budget"),
    ({"content": '<think>maybe {"label": "no"}', "finish_reason": "length", "usage": None}, "reasoning_used_budget"),
    ({"content": None, "finish_reason": "stop"}, "empty"),
    ({"finish_reason": "tool_calls", "usage": {"reasoning_tokens": 9}}, "empty"),
    ({"error": {"status": 400, "message": "too much", "reason": "too_long"}}, "too_long"),
]


@pytest.mark.parametrize(("response", "reason"), HOW_IT_ENDED, ids=range(len(HOW_IT_ENDED)))
def test_how_a_response_ended_comes_before_what_it_says(response: dict[str, Any], reason: str) -> None:
    reading = read_response(response, lambda content: read_text(content, LABELS))
    assert (reading.label, reading.reason) == (None, reason)
    assert reading.detail


@pytest.mark.parametrize(
    ("labels", "said", "label"),
    [
        (["C", "C++", "c#"], "C", "C"),
        (["C", "C++", "c#"], "c", "C"),
        (["C", "C++", "c#"], "c++", "C++"),
        (["C", "C++", "c#"], "C#", "c#"),
        (["C++", "Java"], "C", None),
        (["C", "Java"], "C++", None),
        (["no", "No!"], "no", "no"),
        (["no", "No!"], "No!", "No!"),
        (["no", "No!"], "No", None),
        (["no", "No!"], "`no!`", None),
        (["no", "No!"], " No!\n", "No!"),
        (["no", "No!", "yes"], "Yes.", "yes"),
        (["a b", "a_b"], "a b", "a b"),
        (["a b", "a_b"], "a-b", None),
        (["-1", "0", "1"], "-1", "-1"),
        (["-1", "0"], "1", None),
        ([".5", "1"], "5", None),
        (["A+", "A-"], "A", None),
        (["A", "A-"], "a", "A"),
        (["1", "2"], 1, "1"),
        (["1", "2"], 1.0, None),
        (["True", "False"], True, "True"),
        (["null", "x"], None, None),
        (["caf\u00e9", "bar"], "cafe\u0301", "caf\u00e9"),
        (["cafe\u0301", "caf\u00e9"], "caf\u00e9", "caf\u00e9"),
        (["cafe\u0301", "caf\u00e9"], "cafe\u0301", "cafe\u0301"),
        (["cafe\u0301", "caf\u00e9"], "Caf\u00e9", None),
        (["\uff21", "B"], "a", "\uff21"),
        (["A", "\uff21"], "a", None),
        (["stra\u00dfe", "weg"], "STRASSE", "stra\u00dfe"),
        (["\u5931\u7269", "\u76d7\u96be"], "\u5931\u7269\u3002", "\u5931\u7269"),
        (["*", "**"], "**", "**"),
        (["!?", "?!"], "?!", "?!"),
        (["!?", "?"], "!", None),
        (["!", "yes"], "...", None),
    ],
)
def test_only_what_no_other_label_differs_by_is_forgiven(labels: list[str], said: Any, label: str | None) -> None:
    assert read_text(json.dumps({"label": said}), labels).label == label


@given(label_sets, st.data(), st.text(), st.booleans(), st.booleans())
@example(["a", "b"], None, "</think>{'label': 'b'}\nLabel: b", True, False)
def test_an_answer_in_json_reads_back(labels: list[str], data: Any, why: str, label_first: bool, ascii_: bool) -> None:
    label = labels[0] if data is None else data.draw(st.sampled_from(labels))
    facts = {"label": label, "rationale": why} if label_first else {"rationale": why, "label": label}
    content = json.dumps(facts, ensure_ascii=ascii_)
    for text in (content, f"```json\n{content}\n```", f"<think>hm</think>\n{content}"):
        assert read_text(text, labels) == Reading(label, why.strip() or None)


@given(label_sets, any_text | shreds)
def test_any_text_gives_an_allowed_label_or_a_reason(labels: list[str], content: str) -> None:
    for known in (labels, LABELS):
        reading = read_text(content, known)
        assert (reading.label in known and not reading.reason) or (not reading.label and reading.reason in REASONS)
        (reading.detail + (reading.rationale or "")).encode()


@given(label_sets, st.data())
def test_no_variant_of_a_label_is_taken_for_another(labels: list[str], data: Any) -> None:
    said = data.draw(st.sampled_from(labels))
    change = data.draw(st.sampled_from([str.upper, str.lower, str.title, str.casefold, "{}.".format, "'{}'".format]))
    form = data.draw(st.sampled_from(["NFC", "NFD", "NFKC"]))
    written = unicodedata.normalize(form, change(said))
    assert read_text(json.dumps({"label": written}), labels).label in ({written} & set(labels) or {said, None})


@pytest.mark.parametrize("rationale", [None, "", "  ", 3, ["a"], {"a": 1}])
def test_a_rationale_may_be_missing(rationale: Any) -> None:
    assert read_text(json.dumps({"rationale": rationale, "label": "no"}), LABELS) == Reading("no")


def test_a_rationale_is_found_under_its_other_name_and_on_a_line_of_its_own() -> None:
    assert read_text('{"reason": " why ", "label": "no"}', LABELS) == Reading("no", "why")
    assert read_text("**Reason:** why\n**Label:** no", LABELS).rationale == "why"


def test_half_characters_of_a_rationale_cannot_stop_a_file_from_being_written() -> None:
    assert read_text('{"rationale": "\\ud83d\\ude00 \\ud83d", "label": "no"}', LABELS) == Reading("no", "\U0001f600 ?")


ENDLESS = [
    *(
        shred * 100_000
        for shred in ("[", "{", '{"', '{"a":', "{'a':", '{"a": [', "<think>", "</think>", "label", "label:")
    ),
    *(shred * 50_000 for shred in ('{"a": 1} ', '{"x}', "{'x}", "{'label': 'no'} ", "label:\n", "- _", "Label: no\n")),
    "label" + " " * 300_000 + "x",
    "label: x" + " " * 300_000 + "y",
    "x" + "\n" * 300_000 + "y",
    "x" + " \n" * 100_000 + "label",
    "!" * 300_000,
    "_" * 300_000,
    "{'label': " + "(" * 3900 + "}",
    "{'label': " + "-" * 3900 + "1}",
    "{'label': " + "1+" * 1900 + "1}",
    '{"label": ' + "[" * 500 + "]" * 500 + "}",
    '{"label": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("content", ENDLESS, ids=range(len(ENDLESS)))
def test_no_text_is_slow_to_read(content: str) -> None:
    start = time.process_time()
    read_response({"content": content, "finish_reason": "stop"}, lambda content: read_text(content, LABELS))
    assert time.process_time() - start < 0.5
