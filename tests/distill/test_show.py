"""Single rows for people: what was asked, said, read and paid, and one line where there is no such row."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from edgestill.distill.annotate import annotate
from edgestill.distill.corrections import Correction
from edgestill.distill.dataset import Dataset, Row
from edgestill.distill.ledger import Answer
from edgestill.distill.recipe import Recipe
from edgestill.distill.show import one_row, rejected_rows
from edgestill.distill.teacher.protocol import Annotation, Rejection, Spending, Told
from edgestill.runtime.errors import EdgestillError

ODDS = {"red": 0.5, "green": 0.3, "blue": 0.1, "grey": 0.05, "pink": 0.03, "plum": 0.02}
ANSWERS: dict[str, Answer] = {
    "aa01": Annotation(
        "aa01", "red", ODDS, "it\nis ripe", 100, 20, 12.5, '{"label": "red"}', requests=1, bought_here=1
    ),
    "aa01-2": Annotation("aa01-2", "red", None, None, None, None, None, "red", requests=1),
    "ab02": Rejection("ab02", "unparsable", "no JSON object with a label", "I think\nred " * 40, 110, 30, requests=2),
    "ab03": Rejection("ab03", "refused", "no", "", None, None, requests=1),
    "ac04": None,
}


class Scripted:
    name = fingerprint = "scripted"

    def ask(self, rows: Iterable[Row], told: Told) -> None:
        told(len(list(rows)))

    def answer(self, row: Row) -> Answer:
        return ANSWERS.get(row.id)

    def spending(self) -> Spending:
        return Spending(requests=5, usd=None, usd_by_split=None, worst_case=0)

    def close(self) -> None: ...


def a_run(folder: Path, price: dict[str, str] | None) -> Path:
    teacher = {"kind": "replay", "path": "teacher.jsonl", "price_usd_per_mtok": price}
    task = {"instruction": "Which?", "labels": list(ODDS)}
    recipe = Recipe.model_validate({"name": "x", "task": task, "data": {"pool": "p.jsonl"}, "teacher": teacher})
    splits = {"aa01": "train", "aa01-2": "test", "ab02": "dev"}
    rows = [Row(name, f"text of\n{name} {{x}}", None, splits.get(name, "train")) for name in [*ANSWERS, "ad05"]]
    rows[1] = replace(rows[1], gold="green")
    gone = ((Row("ae06", "again", None, "train"), "duplicate"),)
    by_hand = {"ad05": Correction("plum", "I looked")}
    data = Dataset(tuple(rows), gone)
    annotate(recipe, data, Scripted(), lambda _: True, folder, corrections=by_hand)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return a_run(tmp_path / "annotations", {"input": "0.15", "output": "0.60"})


def test_rejects_show_reason_split_words_and_cost(run: Path) -> None:
    found = rejected_rows(run, None, 20)
    assert found.rejected == {"duplicate": 1, "refused": 1, "unparsable": 1}
    assert [(row["id"], row["split"], row["reason"]) for row in found.rows] == [
        ("ab02", "dev", "unparsable"),
        ("ab03", "train", "refused"),
        ("ae06", "train", "duplicate"),
    ]
    assert found.rows[0]["raw"] == "I think\nred " * 40
    first, rest = found.text.split("\n\n", 1)
    assert first == "3 rejected: 1 duplicate, 1 refused, 1 unparsable; 3 shown"
    long, refused, gone = rest.split("\n\n")
    head, text, said, cost = long.splitlines()
    assert head == "ab02  dev  unparsable: no JSON object with a label"
    assert text == "  text  text of ab02 {x}"
    assert said.startswith("  said  I think red I think red")
    assert said.endswith("…")
    assert len(said) == len("  said  ") + 100
    assert cost == "  cost  2 requests, 110 + 30 tokens, 0.0000345 USD"  # 110 * 0.15 + 30 * 0.60 a million
    assert refused.splitlines()[2] == "  cost  1 request, unknown tokens, USD unknown"
    assert gone == "ae06  train  duplicate: taken out before asking\n  text  again"


def test_rejects_of_one_reason_and_no_more_than_asked_for(run: Path) -> None:
    assert [row["id"] for row in rejected_rows(run, "refused", 20).rows] == ["ab03"]
    some = rejected_rows(run, None, 2)
    assert [row["id"] for row in some.rows] == ["ab02", "ab03"]
    assert "3 rejected" in some.text
    assert "2 shown" in some.text
    with pytest.raises(EdgestillError, match="rejected as 'empty'; reasons here: duplicate, refused, unparsable"):
        rejected_rows(run, "empty", 20)


def test_a_row_tells_all_that_is_known(run: Path) -> None:
    facts = one_row(run, "aa01").facts
    assert facts == {
        "id": "aa01",
        "split": "train",
        "text": "text of\naa01 {x}",
        "gold": None,
        "status": "accepted",
        "label": "red",
        "rationale": "it\nis ripe",
        "probabilities": {"red": 0.5, "green": 0.3, "blue": 0.1, "grey": 0.05, "pink": 0.03},
        "corrected": False,
        "agrees": None,
        "latency_ms": 12.5,
        "raw": '{"label": "red"}',
        "requests": 1,
        "bought_here": 1,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "usd": "0.000027",
    }
    lines = one_row(run, "aa01").text.splitlines()
    assert lines[2:4] == ["text               text of", "                   aa01 {x}"]
    assert 'raw                {"label": "red"}' in lines
    assert lines[-1] == "usd                0.000027"


def test_what_is_unknown_is_called_unknown_and_never_0(run: Path, tmp_path: Path) -> None:
    row = one_row(run, "aa01-2")
    assert (row.facts["usd"], row.facts["prompt_tokens"], row.facts["gold"]) == (None, None, "green")
    assert "usd                unknown" in row.text
    assert "probabilities      none" in row.text
    unpriced = a_run(tmp_path / "unpriced", None)
    assert one_row(unpriced, "aa01").facts["usd"] is None


def test_a_row_is_found_by_the_beginning_of_its_id_where_that_is_clear(run: Path) -> None:
    assert one_row(run, "ac").facts["status"] == "pending"
    assert one_row(run, "ad").facts["corrected"] is True
    assert (one_row(run, "ae06").facts["reason"], one_row(run, "ae06").facts["usd"]) == ("duplicate", "0")
    assert one_row(run, "aa01").facts["id"] == "aa01"  # the beginning of another, but whole
    with pytest.raises(EdgestillError, match=r"2 rows of .* begins with 'ab': ab02, ab03 - ids stand in"):
        one_row(run, "ab")
    with pytest.raises(EdgestillError, match=r"0 rows of .* begins with 'zz' - ids stand in"):
        one_row(run, "zz")
    with pytest.raises(EdgestillError, match="2 rows"):
        one_row(run, "aa0")


def test_a_folder_that_is_not_whole_is_refused(run: Path) -> None:
    (run / "annotations.json").unlink()
    for call in (lambda: one_row(run, "aa01"), lambda: rejected_rows(run, None, 1)):
        with pytest.raises(EdgestillError, match="the folder is not whole"):
            call()
