"""Rows in: the same from every format, each in one split or counted as removed, and none of the test's in training."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.distill.dataset import Dataset, load_dataset, near_duplicates, row_id
from edgestill.distill.recipe import read_recipe
from edgestill.runtime.errors import EdgestillError

Records = list[dict[str, Any]]
LABELS = ["red", "green"]
SENTENCE = (
    "the gardener found a {} frog under the oldest tree of the park while the evening rain was falling on the town"
)


def write_jsonl(path: Path, records: Records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def load(folder: Path, pool: str, test: str | None = None, **data: Any) -> Dataset:
    """Load with a recipe in `folder` that names these two sources."""
    recipe = {
        "name": "rows",
        "task": {"instruction": "Which?", "labels": LABELS},
        "data": {"pool": pool, "test": test, "gold": "gold", **data},
        "teacher": {"kind": "replay", "path": "teacher.jsonl"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return load_dataset(read_recipe(path), path)


def load_records(folder: Path, pool: Records, test: Records | None, **data: Any) -> Dataset:
    write_jsonl(folder / "pool.jsonl", pool)
    if test is not None:
        write_jsonl(folder / "test.jsonl", test)
    return load(folder, "pool.jsonl", None if test is None else "test.jsonl", **data)


def numbered(count: int, word: str = "row", start: int = 0) -> Records:
    rng = random.Random(f"{word}{start}")
    names = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(count)]
    return [{"text": f"{word} {name}", "gold": LABELS[i % 2]} for i, name in enumerate(names)]


POOL = [
    *numbered(30),
    {"text": 'a, "quoted"\ntext with a line', "gold": "red"},
    {"text": "grün 你好 😀", "gold": "green"},
]
TEST = [*numbered(6, "held"), {"text": "twice", "gold": "red"}, {"text": "twice", "gold": "red"}]


@pytest.fixture(scope="module")
def from_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_records(tmp_path_factory.mktemp("jsonl"), POOL, TEST)


def test_csv_gives_the_same_rows(tmp_path: Path, from_jsonl: Dataset) -> None:
    for name, records in (("pool.csv", POOL), ("test.csv", TEST)):
        with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["gold", "text"])
            writer.writeheader()
            writer.writerows(records)
    assert load(tmp_path, "pool.csv", "test.csv") == from_jsonl


def test_parquet_gives_the_same_rows(tmp_path: Path, from_jsonl: Dataset) -> None:
    import pyarrow
    import pyarrow.parquet

    for name, records in (("pool.parquet", POOL), ("test.parquet", TEST)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / name, row_group_size=7)
    assert load(tmp_path, "pool.parquet", "test.parquet") == from_jsonl


def test_a_data_set_folder_gives_the_same_rows(
    tmp_path: Path, from_jsonl: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # not into the user's home
    (tmp_path / "hub").mkdir()
    write_jsonl(tmp_path / "hub" / "train.jsonl", POOL)
    write_jsonl(tmp_path / "hub" / "test.jsonl", TEST)
    assert load(tmp_path, "hub", "hub") == from_jsonl
    swapped = load(tmp_path, f"{tmp_path}/hub:test", f"{tmp_path}/hub:train", dev_fraction=0.5)
    assert len(swapped.split("test")) == len(POOL)
    assert len(swapped.rows) + len(swapped.removed) == len(TEST) + len(POOL)


def test_the_same_rows_are_neither_none_nor_few(from_jsonl: Dataset) -> None:
    assert len(from_jsonl.rows) + len(from_jsonl.removed) == 32 + 8
    assert len(from_jsonl.split("test")) == 8
    assert [row.gold for row in from_jsonl.split("test")] == [record["gold"] for record in TEST]
    assert {row.gold for row in from_jsonl.rows if row.split != "test"} == {None}


@pytest.mark.parametrize(
    ("name", "content"),
    [("pool.jsonl", b""), ("pool.jsonl", b"\n\n"), ("pool.csv", b""), ("pool.csv", b"text,gold\n")],
)
def test_an_empty_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdgestillError, match=rf"{name} is empty"):
        load(tmp_path, name)


GOOD = b'{"text": "fine", "gold": "red"}\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "torn', "is not JSON"),
        (b'["text"]', "holds list"),
        (b'{"text": "caf\xe9"}', "is not JSON"),
        (b'{"words": "x"}', "the field 'text' is missing"),
        (b'{"text": null}', "the field 'text' is missing"),
        (b'{"text": "  "}', "the text is empty"),
        (b'{"text": "x"}', "no gold column 'gold'"),
        (b'{"text": "x", "gold": "blue"}', r"gold label 'blue' is not one of \["),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, words: str) -> None:
    (tmp_path / "pool.jsonl").write_bytes(GOOD + b"\n" + GOOD + line + b"\n" + GOOD)
    with pytest.raises(EdgestillError, match=rf"pool\.jsonl:4:? {words}"):
        load(tmp_path, "pool.jsonl")


def test_half_a_surrogate_pair_in_a_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_bytes(GOOD + b'{"text": "half \\ud83d emoji", "gold": "red"}\n')
    with pytest.raises(EdgestillError, match=r"pool\.jsonl:2"):
        load(tmp_path, "pool.jsonl")


def test_a_broken_csv_row_is_named_by_its_line_also_after_a_text_of_several_lines(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text('text,gold\n"two\nlines",red\n\nfine,blue\n', encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"pool\.csv:5: gold label 'blue'"):
        load(tmp_path, "pool.csv")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "pool.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(POOL), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 36 + whole[40:])
    with pytest.raises(EdgestillError, match=r"pool\.parquet"):
        load(tmp_path, "pool.parquet")


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("nowhere.jsonl", "no file .*nowhere.jsonl"),
        ("rows.xlsx", "ends in '.xlsx'"),
        ("./no/such/id", "cannot read it"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, pool: str, words: str) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(EdgestillError, match=words):
        load(tmp_path, pool)


def test_exact_and_near_duplicates_are_taken_from_the_pool_and_never_from_test(tmp_path: Path) -> None:
    test = [{"text": SENTENCE.format("green"), "gold": "green"}, {"text": SENTENCE.format("green"), "gold": "green"}]
    doubled = numbered(20)
    pool = [
        *doubled,
        *({"text": record["text"].upper() + " "} for record in doubled[:5]),
        {"text": "  " + SENTENCE.format("Green").replace(" ", "  ")},
        {"text": SENTENCE.format("green") + "!"},
    ]
    found = load_records(tmp_path, pool, test)
    assert [row.text for row in found.split("test")] == [SENTENCE.format("green")] * 2
    assert len({row.id for row in found.split("test")}) == 2
    assert found.removed_by_reason == {"duplicate": 5, "in_test": 1, "near_test": 1}
    assert len({row.id for row, _ in found.removed}) == 7
    kept = found.split("train") + found.split("dev")
    assert sorted(row.text for row in kept) == sorted(record["text"] for record in doubled)


def test_no_training_row_is_nearly_a_development_row(tmp_path: Path) -> None:
    pool = [{"text": SENTENCE.format("green") + "!" * (i % 4) + "?" * (i // 4)} for i in range(16)]
    found = load_records(tmp_path, [*pool, *numbered(20)], numbered(3, "held"), dev_fraction=0.3)
    train, dev = ([row.text for row in found.split(name)] for name in ("train", "dev"))
    assert found.removed_by_reason["near_dev"] > 0
    assert near_duplicates(train, dev) == set()


def test_near_means_nearly_the_same_letters_and_not_the_same_subject() -> None:
    others = [SENTENCE.format("green")]
    texts = [SENTENCE.format("grey"), "a frog in the rain", others[0].upper() + ".", "x", others[0], others[0][:70]]
    assert near_duplicates(texts, others) == {0, 2, 4}
    assert near_duplicates([], others) == near_duplicates(texts, []) == set()


def test_many_texts_are_compared_piece_by_piece_with_the_same_result() -> None:
    texts = [record["text"] for record in numbered(4500)]
    assert near_duplicates(texts, [texts[i] for i in (0, 1999, 2000, 4499)]) == {0, 1999, 2000, 4499}


def test_without_a_test_file_a_share_of_the_pool_is_held_out_with_its_gold(tmp_path: Path) -> None:
    records = numbered(400)
    found = load_records(tmp_path, records, None, test_fraction=0.25)
    gold = {row_id(record["text"]): record["gold"] for record in records}
    assert 70 <= len(found.split("test")) <= 130
    assert len(found.rows) + len(found.removed) == 400
    assert all(row.gold == gold[row.id] for row in found.split("test"))
    assert {row.gold for row in found.split("train") + found.split("dev")} == {None}


def test_another_seed_holds_out_other_rows(tmp_path: Path) -> None:
    one, two = (load_records(tmp_path, numbered(60), None, seed=seed) for seed in (7, 8))
    assert {row.id for row in one.split("test")} != {row.id for row in two.split("test")}


def test_rows_that_run_out_are_said_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(EdgestillError, match=r"no rows are left for train: 0 train, 0 dev, 3 test, removed .*3"):
        load_records(tmp_path, numbered(3), numbered(3))


WORDS = st.sampled_from(["a", "b", "lamp", "Lamp", "lamp ", "the door", "the  door", SENTENCE, SENTENCE + "!", "😀"])
TEXTS = st.lists(st.one_of(WORDS, st.integers(0, 60).map(lambda i: numbered(61)[i]["text"])), min_size=1, max_size=40)


def by_split(data: Dataset) -> dict[str, set[str]]:
    return {name: {row.id for row in data.split(name)} for name in ("train", "dev", "test")}


@settings(max_examples=50, deadline=None)
@given(pool=TEXTS, test=st.none() | TEXTS, seed=st.integers(0, 9), order=st.randoms(use_true_random=False))
def test_every_row_is_in_one_split_or_counted_as_removed_in_any_order(
    pool: list[str], test: list[str] | None, seed: int, order: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    held = None if test is None else [{"text": text, "gold": "red"} for text in test]
    rows = [{"text": text, "gold": "red"} for text in pool]
    try:
        data = load_records(folder, rows, held, dev_fraction=0.3, test_fraction=0.3, seed=seed)
    except EdgestillError as error:
        assert "no rows are left for" in error.message
        return
    splits = by_split(data)
    assert len(data.rows) + len(data.removed) == len(pool) + len(test or [])
    assert len(set().union(*splits.values())) == len(data.rows)
    assert splits["train"] | splits["dev"] <= {row_id(text) for text in pool}
    order.shuffle(rows)
    again = load_records(folder, rows, held, dev_fraction=0.3, test_fraction=0.3, seed=seed)
    assert (by_split(again), again.removed_by_reason) == (splits, data.removed_by_reason)
