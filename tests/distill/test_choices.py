"""Rows with choices of their own, in distill: what a row may hold, which letter is right, how a teacher is read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgestill.distill.base import prepare_base
from edgestill.distill.base_prompts import base_prompts
from edgestill.distill.corrections import read_corrections
from edgestill.distill.dataset import Row, load_dataset
from edgestill.distill.labels import build_task
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.conversation import Resolved, resolve
from edgestill.distill.teacher.forms import form_of
from edgestill.distill.teacher.local import LocalEndpoint
from edgestill.distill.teacher.local_model import TransformersModel
from edgestill.distill.teacher.prompt import Dialect, Prompter
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.distill.teacher.replay import ReplayTeacher
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import load_tokenizer
from edgestill.runtime.written import with_choices

OPTIONS = ["park", "math problem", "gravity"]
TEXT = with_choices("An apple falls?", OPTIONS)


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    """A recipe of choices; a change is a section's keys."""
    sections: dict[str, dict[str, Any]] = {
        "task": {"choices": "options", "instruction": "Which one?"},
        "data": {"pool": "pool.jsonl", "gold": "gold", "text": "{question}", "test_fraction": 0.5},
        "teacher": {"kind": "replay", "path": "teacher.jsonl"},
        "student": {},
        "train": {},
    }
    made = {name: section | changes.get(name, {}) for name, section in sections.items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "options", **made}), encoding="utf-8")
    return read_recipe(folder / "recipe.yaml")


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_the_labels_are_letters_and_nobody_writes_them(tmp_path: Path) -> None:
    assert list(recipe_in(tmp_path).task.labels) == list("ABCDE")
    recipe = recipe_in(tmp_path, task={"most_choices": 3})
    assert list(recipe.task.labels) == list("ABC")
    assert TaskSection.model_validate(recipe.task.model_dump()) == recipe.task


@pytest.mark.parametrize(
    ("section", "keys", "words"),
    [
        ("task", {"labels": ["a", "b"]}, "the labels are the letters of each row's options; take this key away"),
        ("task", {"kind": "multilabel"}, "choices is for kind classify, found kind multilabel"),
        ("task", {"most_choices": 27}, "task.most_choices"),
        ("task", {"none": "A"}, "none: 'A' names a label, and this task names none"),
        ("task", {"choices": None, "labels": ["a", "b"], "most_choices": 4}, "most_choices is for a task with choices"),
        ("train", {"label_smoothing": 0.1}, "label_smoothing would give shares to letters that a row has no choice"),
        ("train", {"objective": "chain"}, "chain, which is for kind generate"),
    ],
)
def test_what_choices_cannot_have_is_refused(tmp_path: Path, section: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        recipe_in(tmp_path, **{section: keys})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("gold", "options", "letter"),
    [
        ("B", OPTIONS, "B"),
        (1, OPTIONS, "B"),
        ("2", OPTIONS, "C"),
        ("math  Problem.", OPTIONS, "B"),
        ("9", ["8", "9"], "B"),
        (9, ["8", "9"], "B"),
        (1, ["8", "1"], "B"),
        ("2", ["3", "2", "1"], None),
        (2, ["3", "2", "1"], None),
        ("D", OPTIONS, None),
        (3, OPTIONS, None),
        (-1, OPTIONS, None),
        (True, OPTIONS, None),
        ("pear", OPTIONS, None),
        ("A", ["b", "a"], None),
        ("same", ["same", "Same", "other"], None),
    ],
)
def test_gold_is_a_letter_a_place_or_the_choices_own_words(
    tmp_path: Path, gold: Any, options: list[str], letter: str | None
) -> None:
    task, text = recipe_in(tmp_path).task, with_choices("Q?", options)
    if letter is not None:
        assert task.read(gold, text) == letter
        return
    with pytest.raises(EdgestillError, match=r"means several of|is none of"):
        task.read(gold, text)


def test_a_rows_text_holds_its_choices_and_its_gold_their_letter(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"{hashlib.sha256(bytes([i])).hexdigest()}?",
            "options": OPTIONS[: 2 + i % 2],
            "gold": OPTIONS[i % 2],
        }
        for i in range(40)
    ]
    write(tmp_path / "pool.jsonl", rows)
    data = load_dataset(recipe_in(tmp_path), tmp_path / "recipe.yaml")
    wanted = {with_choices(row["question"], row["options"]): "AB"[OPTIONS.index(row["gold"])] for row in rows}
    assert {row.text: row.gold for row in data.split("test")}.items() <= wanted.items()
    assert all(row.text in wanted for row in data.rows)


def test_a_correction_by_hand_may_be_the_choices_own_words(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, data={"corrections": "corrections.jsonl"})
    row = Row("0f", TEXT, None, "train")
    write(tmp_path / "corrections.jsonl", [{"id": "0f", "label": "gravity"}])
    assert read_corrections(recipe, tmp_path / "recipe.yaml", [row])["0f"].label == "C"
    write(tmp_path / "corrections.jsonl", [{"id": "0f", "label": "E"}])
    with pytest.raises(EdgestillError, match="is none of"):
        read_corrections(recipe, tmp_path / "recipe.yaml", [row])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "x"}, r"pool.jsonl:1: no column 'options' of choices, found \['question'\]"),
        ({"question": "x", "options": ["a"]}, "pool.jsonl:1: found 1 choices, wanted a list of 2 to 26"),
        ({"question": "x", "options": "a, b"}, "pool.jsonl:1: found the text 'a, b', wanted a list"),
        (
            {"question": "x", "options": {"label": ["A", "B"], "text": ["a", "b"]}},
            r"pool.jsonl:1: found a mapping of \['label', 'text'\], wanted a list of 2 to 26 choices",
        ),
        ({"question": "x", "options": 5}, "pool.jsonl:1: found the int 5, wanted a list of 2 to 26 choices"),
        (
            {"question": "x", "options": list("abcdef")},
            "pool.jsonl:1: 6 choices in 'options', but task.most_choices is 5",
        ),
        ({"question": "x", "options": ["a", " "]}, "pool.jsonl:1: choice B is blank"),
    ],
)
def test_choices_that_are_none_are_named_by_their_row(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    write(tmp_path / "pool.jsonl", [record])
    with pytest.raises(EdgestillError, match=words):
        load_dataset(recipe_in(tmp_path), tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("content", "letter"),
    [
        ('{"rationale": "x", "label": "B"}', "B"),
        ('{"label": "b)"}', "B"),
        ('{"label": "Math Problem."}', "B"),
        ('{"label": "(b) math problem"}', "B"),
        ('{"answer": "gravity"}', "C"),
        ("Only the math problem has to do with it. So the answer is (b) math problem.", "B"),
        ("gravity", "C"),
        ('{"label": "D"}', None),
        ('{"label": "A) gravity"}', None),
        ("It may be B or C", None),
    ],
)
def test_the_teacher_may_say_the_letter_or_the_choice(tmp_path: Path, content: str, letter: str | None) -> None:
    reading = form_of(recipe_in(tmp_path).task).read(content, TEXT)
    assert reading.label == letter
    assert reading.label or reading.reason in ("label_not_allowed", "unparsable")


def test_the_letters_odds_are_over_the_rows_own_choices(tmp_path: Path) -> None:
    tokens = [
        ['{"label": "', -0.1, [['{"label": "', -0.1]]],
        ["B", -0.5, [["B", -0.5], ["A", -1.5], ["D", -2.0]]],
        ['"}', -0.1, [['"}', -0.1]]],
    ]
    response = {"content": '{"label": "B"}', "finish_reason": "stop", "logprobs": tokens}
    prompter = Prompter(recipe_in(tmp_path, task={"rationale": False}), "host", "big", Dialect())
    found = resolve(prompter, TEXT, 0, False, lambda _: response)
    assert isinstance(found, Resolved)
    assert found.probabilities is not None
    assert list(found.probabilities) == list("ABCDE")
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.probabilities["B"] > found.probabilities["A"] > 0 == found.probabilities["D"]
    repair = prompter.repair(prompter.first(TEXT), "D", "label is 'D'", TEXT)
    assert repair.body["messages"][-1]["content"].endswith('label is one of "A", "B", "C".')


@pytest.mark.parametrize("priming", ["none", "confidence"])
def test_a_model_in_this_process_chooses_among_the_rows_own_letters(
    tmp_path: Path, tiny_base: Path, priming: str
) -> None:
    recipe = recipe_in(tmp_path, teacher={"kind": "huggingface", "path": str(tiny_base), "priming": priming})
    endpoint = LocalEndpoint(recipe, tmp_path / "recipe.yaml", "local:test")
    endpoint._opened = TransformersModel(str(tiny_base), tmp_path)
    body = Prompter(recipe, "h", "m", Dialect()).first(TEXT).body
    reply = endpoint._answer({"messages": body["messages"], "max_tokens": 48}).response
    assert list(reply["label_probabilities"]) == list("ABC")
    assert json.loads(reply["content"])["label"] in "ABC"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "An apple falls?", "options": OPTIONS, "answer": "math problem"}, "B"),
        ({"text": TEXT, "label": "C", "probabilities": {"C": 0.7, "A": 0.3}}, "C"),
        ({"text": TEXT, "answer": 0}, "A"),
        ({"text": TEXT, "raw": "So the answer is (c) gravity."}, "C"),
        ({"text": TEXT, "answer": "pear"}, "label_not_allowed"),
        ({"text": "An apple falls?", "answer": "gravity"}, "not_recorded"),
    ],
)
def test_a_recorded_answer_brings_its_choices_or_stands_below_them(
    tmp_path: Path, record: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "teacher.jsonl", [record])
    answer = ReplayTeacher(path, recipe_in(tmp_path)).answer(Row("id", TEXT, None, "train"))
    assert said == (answer.reason if isinstance(answer, Rejection) else answer.label)
    assert not isinstance(answer, Annotation) or answer.probabilities is None or answer.probabilities["B"] == 0


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        ({"B": 0.8}, [0.1, 0.8, 0.1, 0, 0]),
        ({"B": 0.6, "A": 0.3, "E": 0.1}, [1 / 3, 2 / 3, 0, 0, 0]),
        ({"E": 1.0}, None),
    ],
)
def test_recorded_odds_are_over_the_rows_own_choices(
    tmp_path: Path, recorded: dict[str, float], found: list[float] | None
) -> None:
    path = write(tmp_path / "teacher.jsonl", [{"text": TEXT, "label": "B", "probabilities": recorded}])
    answer = ReplayTeacher(path, recipe_in(tmp_path)).answer(Row("id", TEXT, None, "train"))
    assert isinstance(answer, Annotation)
    odds = None if answer.probabilities is None else [answer.probabilities[letter] for letter in "ABCDE"]
    assert odds == (None if found is None else pytest.approx(found))


def test_the_untrained_base_gives_nothing_to_letters_that_the_row_has_no_choice_for(
    tmp_path: Path, tiny_base: Path
) -> None:
    from edgestill.distill.torch_session import TorchSession

    recipe = recipe_in(tmp_path, student={"base": str(tiny_base)})
    task = build_task(recipe, prepare_base(str(tiny_base)), load_tokenizer(tiny_base))
    session = TorchSession(TransformersModel(str(tiny_base), tmp_path).session._model, 512)
    systems = dict(base_prompts(tiny_base, task, session))
    assert list(systems) == ["chat", "plain"]
    for answer in systems.values():
        found = answer(TEXT)
        assert list(found.probabilities.values())[3:] == [0, 0]
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert min(list(found.probabilities.values())[:3]) > 0
        assert found.label in "ABC"
