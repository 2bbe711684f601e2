"""Asking the teacher: every row is accounted for, and what is unknown is not called 0."""

import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import pytest

from edgestill.distill import pipeline
from edgestill.distill.annotate import MANIFEST_NAME, ROWS_NAME, accepted, annotate, read_annotations
from edgestill.distill.corrections import Correction
from edgestill.distill.dataset import Dataset, Row, row_id
from edgestill.distill.ledger import Answer, Ledger
from edgestill.distill.plan import make_plan
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.protocol import Annotation, Rejection, Spending, Told
from edgestill.distill.teacher.replay import ReplayTeacher
from edgestill.runtime import manifest
from edgestill.runtime.errors import BudgetReached, EdgestillError

PRICE = {"input": "0.15", "output": "0.60"}


def a_recipe(price: dict[str, str] | None = None, instruction: str = "Which?") -> Recipe:
    return Recipe.model_validate(
        {
            "name": "rows",
            "task": {"instruction": instruction, "labels": ["red", "green"]},
            "data": {"pool": "pool.jsonl"},
            "teacher": {"kind": "replay", "path": "teacher.jsonl", "price_usd_per_mtok": price},
        }
    )


def a_dataset(texts: list[str], removed: dict[str, int] | None = None) -> Dataset:
    splits = ("train", "train", "dev", "test")
    rows = tuple(Row(row_id(t), t, None, splits[i % 4]) for i, t in enumerate(texts))
    gone = [
        (Row(f"{reason}-{i}", "gone", None, "train"), reason) for reason, n in (removed or {}).items() for i in range(n)
    ]
    return Dataset(rows, tuple(gone))


class CountingTeacher:
    """Answers every text but the ones with "bad" in them, remembers what it was asked, and may stop on the way."""

    name = "counting"
    fingerprint = "always the same"

    def __init__(self, stops_after: int | None = None, usage: bool = True) -> None:
        self.asked: list[str] = []
        self._stops_after, self._usage = stops_after, usage

    def ask(self, rows: Iterable[Row], told: Told) -> EdgestillError | None:
        for row in rows:
            if len(self.asked) == self._stops_after:
                return BudgetReached("the cap is reached", "raise it")
            self.asked.append(row.text)
            told(len(self.asked))
        return None

    def answer(self, row: Row) -> Answer:
        if row.text not in self.asked:
            return None
        if "bad" in row.text:
            return Rejection(row.id, "unparsable", "it said nothing", "…", 100, 10)
        spent = (100, 10) if self._usage else (None, None)
        return Annotation(row.id, "red", None, "because\u2028of\nit", *spent, None, row.text, requests=2, bought_here=1)

    def spending(self) -> Spending:
        return Spending(len(self.asked), "0.5", {"train": "0.5"}, 0)

    def spent_so_far(self) -> str:
        return ""

    def close(self) -> None:
        pass


def ask(
    folder: Path, data: Dataset, teacher: CountingTeacher, recipe: Recipe | None = None, longest: int = 99
) -> Ledger:
    return annotate(recipe or a_recipe(PRICE), data, teacher, lambda text: len(text) <= longest, folder)[0]


TEXTS = ["lamp on", "bad one", "grün 😀", "door\nshut", "a bad two", "fan", "x" * 50, "blind"]


def test_accepted_rejected_and_pending_add_up_to_the_rows_that_were_read(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    ledger = ask(tmp_path, a_dataset(TEXTS, {"near_test": 3, "duplicate": 2}), teacher, longest=40)
    assert ledger.rejected == {"duplicate": 2, "near_test": 3, "too_long": 1, "unparsable": 2}
    assert (ledger.rows, ledger.accepted, ledger.pending) == (8 + 5, 5, 0)
    assert ledger.splits == {"train": 2, "dev": 1, "test": 2}
    assert sum(ledger.splits.values()) == ledger.accepted
    assert teacher.asked == [text for text in TEXTS if len(text) <= 40]
    assert (ledger.requests, ledger.cached, ledger.rationales) == (7, 5, 5)


@pytest.mark.parametrize("asked", range(len(TEXTS) + 1))
def test_rows_that_were_not_reached_are_pending_and_the_ledger_says_why(tmp_path: Path, asked: int) -> None:
    data = a_dataset(TEXTS, {"duplicate": 1})
    ledger, stopped = annotate(a_recipe(PRICE), data, CountingTeacher(asked), lambda _: True, tmp_path)
    assert ledger.pending == len(TEXTS) - asked == ledger.unfinished
    assert ledger.rows == ledger.accepted + sum(ledger.rejected.values()) + ledger.pending == len(TEXTS) + 1
    assert (ledger.stopped is None) == (stopped is None) == (asked == len(TEXTS))
    assert sum(answer is None for _, answer in read_annotations(tmp_path)) == ledger.pending


def test_what_was_answered_is_read_back_as_it_was(tmp_path: Path) -> None:
    data, teacher = a_dataset(TEXTS), CountingTeacher()
    ask(tmp_path, data, teacher)
    pairs = list(read_annotations(tmp_path))
    assert [row for row, _ in pairs] == list(data.rows)
    assert [answer for _, answer in pairs] == [teacher.answer(row) for row in data.rows]
    assert [row.text for row, _ in accepted(tmp_path, "train")] == ["lamp on", "fan"]
    assert manifest.load(Ledger, tmp_path / MANIFEST_NAME).rows_sha256 == manifest.sha256_file(tmp_path / ROWS_NAME)


def test_a_correction_by_hand_wins_and_its_row_is_not_asked(tmp_path: Path) -> None:
    data, teacher = a_dataset(TEXTS), CountingTeacher()
    by_hand = {row_id("bad one"): Correction("green", "I looked"), row_id("fan"): Correction("green", None)}
    ledger, _ = annotate(a_recipe(PRICE), data, teacher, lambda _: True, tmp_path, corrections=by_hand)
    assert (ledger.corrected, ledger.accepted, ledger.rejected) == (2, 7, {"unparsable": 1})
    assert not {"bad one", "fan"} & set(teacher.asked)
    found = {row.text: answer for row, answer in read_annotations(tmp_path)}
    assert isinstance(found["bad one"], Annotation)
    assert (found["bad one"].label, found["bad one"].rationale, found["bad one"].corrected) == (
        "green",
        "I looked",
        True,
    )


def test_recorded_answers_that_changed_are_asked_again(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    (first, _), _ = pipeline.run_annotate(make_plan(tiny_recipe), folder, lambda *_: None)
    _, known = pipeline.run_annotate(make_plan(tiny_recipe), folder, lambda *_: None)
    assert known
    answers = tiny_recipe.parent / "teacher.jsonl"
    answers.write_text(
        answers.read_text(encoding="utf-8").replace('"label": "red"', '"label": "blue"'), encoding="utf-8"
    )
    (second, _), known = pipeline.run_annotate(make_plan(tiny_recipe), folder, lambda *_: None)
    assert not known
    assert second.accepted < first.accepted
    assert second.rejected["label_not_allowed"] > 0


def test_recorded_answers_that_are_not_usable_are_rejected_by_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "teacher.jsonl"
    records = [
        {"text": " Lamp  on ", "label": "red", "rationale": " it glows ", "usage": {"prompt_tokens": 3}},
        {"text": "fan", "label": "blue", "raw": "Blue!"},
        {"text": "door", "label": None},
        {"text": "sun", "label": ["red"]},
        {"text": "moss", "label": "green", "probabilities": {"green": 0.75}},
        {"text": "ruby", "label": "red", "probabilities": {"red": 2, "green": 2}},
        {"text": "lime", "label": "green", "probabilities": {"blue": 1}},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    texts = ["lamp on", "fan", "door", "sun", "moss", "ruby", "lime", "unheard"]
    folder = tmp_path / "annotations"
    teacher = ReplayTeacher(path, a_recipe())
    ledger, _ = annotate(a_recipe(), a_dataset(texts), teacher, lambda _: True, folder)
    assert ledger.rejected == {"label_not_allowed": 1, "not_recorded": 1, "unparsable": 2}
    found = {row.text: answer for row, answer in read_annotations(folder)}
    lamp, fan, moss, ruby, lime = (found[text] for text in ("lamp on", "fan", "moss", "ruby", "lime"))
    assert isinstance(lamp, Annotation)
    assert (lamp.label, lamp.rationale, lamp.prompt_tokens, lamp.latency_ms) == ("red", "it glows", 3, None)
    assert (fan.raw, getattr(fan, "detail", None)) == ("Blue!", "label is 'blue'")
    odds = [getattr(answer, "probabilities", ...) for answer in (moss, ruby, lime)]
    assert odds == [{"red": 0.25, "green": 0.75}, {"red": 0.5, "green": 0.5}, None]


def test_a_record_without_a_text_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "teacher.jsonl"
    path.write_text('{"text": "a", "label": "red"}\n{"label": "red"}\n', encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"teacher\.jsonl:2: no field 'text', found \['label'\]"):
        ReplayTeacher(path, a_recipe())


def test_an_unknown_price_is_none_and_a_known_one_is_exact(tmp_path: Path) -> None:
    data = a_dataset(TEXTS)
    unpriced = ask(tmp_path / "unpriced", data, CountingTeacher(), a_recipe())
    assert (unpriced.recorded_usd, unpriced.usd_per_1000_requests, unpriced.usd_per_label) == (None, None, None)
    untold = ask(tmp_path / "untold", data, CountingTeacher(usage=False))
    assert (untold.recorded_usd, untold.usd_per_1000_requests, untold.prompt_tokens) == (None, None, None)
    priced = ask(tmp_path / "priced", data, CountingTeacher())
    a_request = (100 * Decimal("0.15") + 10 * Decimal("0.60")) / 1_000_000
    assert priced.recorded_usd is not None
    assert Decimal(priced.recorded_usd) == 8 * a_request  # unusable answers were paid for too
    assert priced.usd_per_label == f"{8 * a_request / 6:.9f}" == priced.usd_per_rationale
    assert priced.usd_per_1000_requests == pytest.approx(float(1000 * a_request))
