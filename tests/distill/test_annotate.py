"""Asking the teacher: every row is accounted for, an answer is paid for once, and what is unknown is not called 0."""

import dataclasses
import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.distill import pipeline
from edgestill.distill.annotate import MANIFEST_NAME, ROWS_NAME, Ledger, accepted, annotate, cost_usd, read_annotations
from edgestill.distill.dataset import Dataset, Row, row_id
from edgestill.distill.recipe import Price, Recipe
from edgestill.distill.replay_teacher import ReplayTeacher
from edgestill.distill.teacher import Annotation, Rejection
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

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
    test = sum(row.split == "test" for row in rows)
    gone = {"duplicate": 0} | (removed or {})
    return Dataset(rows, len(rows) - test + sum(gone.values()), test, gone)


class Killed(BaseException):
    """The machine goes down while the teacher thinks."""


class CountingTeacher:
    """Answers every text but the ones with "bad" in them, remembers what it was asked, and may die on the way."""

    name = "counting"
    fingerprint = "always the same"

    def __init__(self, dies_after: int | None = None, usage: bool = True) -> None:
        self.asked: list[str] = []
        self._dies_after = dies_after
        self._usage = usage

    def answer(self, row: Row) -> Annotation | Rejection:
        if len(self.asked) == self._dies_after:
            raise Killed
        self.asked.append(row.text)
        if "bad" in row.text:
            return Rejection(row.id, "unparsable", "it said nothing", "…")
        spent = (100, 10) if self._usage else (None, None)
        return Annotation(row.id, "red", None, "because\u2028of\nit", *spent, None, row.text)


def ask(
    folder: Path, data: Dataset, teacher: CountingTeacher, recipe: Recipe | None = None, longest: int = 99
) -> Ledger:
    return annotate(recipe or a_recipe(PRICE), data, teacher, lambda text: len(text) <= longest, folder)


TEXTS = ["lamp on", "bad one", "grün 😀", "door\nshut", "a bad two", "fan", "x" * 50, "blind"]


def test_accepted_rejected_and_pending_add_up_to_the_rows_that_were_read(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    ledger = ask(tmp_path, a_dataset(TEXTS, {"near_test": 3, "duplicate": 2}), teacher, longest=40)
    assert ledger.rejected == {"duplicate": 2, "near_test": 3, "too_long": 1, "unparsable": 2}
    assert (ledger.rows, ledger.accepted, ledger.pending) == (8 + 5, 5, 0)
    assert ledger.splits == {"train": 2, "dev": 1, "test": 2}
    assert sum(ledger.splits.values()) == ledger.accepted
    assert teacher.asked == [text for text in TEXTS if len(text) <= 40]


def test_what_was_answered_is_read_back_as_it_was(tmp_path: Path) -> None:
    data = a_dataset(TEXTS)
    ask(tmp_path, data, CountingTeacher())
    pairs = list(read_annotations(tmp_path))
    assert [row for row, _ in pairs] == list(data.rows)
    assert [answer for _, answer in pairs] == [CountingTeacher().answer(row) for row in data.rows]
    assert [row.text for row, _ in accepted(tmp_path, "train")] == ["lamp on", "fan"]
    assert manifest.load(Ledger, tmp_path / MANIFEST_NAME).rows_sha256 == manifest.sha256_file(tmp_path / ROWS_NAME)


@pytest.mark.parametrize("answered", range(len(TEXTS)))
def test_a_killed_run_asks_only_what_is_missing(tmp_path: Path, answered: int) -> None:
    data = a_dataset(TEXTS)
    with pytest.raises(Killed):
        ask(tmp_path, data, CountingTeacher(dies_after=answered))
    assert not (tmp_path / MANIFEST_NAME).exists()
    again = CountingTeacher()
    ledger = ask(tmp_path, data, again)
    assert again.asked == TEXTS[answered:]
    assert ledger == ask(tmp_path / "in one go", data, CountingTeacher())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    ledger = ask(folder, a_dataset(TEXTS), CountingTeacher())
    return ledger, (folder / ROWS_NAME).read_bytes()


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1))
def test_a_journal_torn_at_any_byte_goes_on_from_its_last_whole_line(
    whole: tuple[Ledger, bytes], share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger, journal = whole
    torn = journal[: round(share * len(journal))]
    folder = tmp_path_factory.mktemp("torn")
    (folder / ROWS_NAME).write_bytes(torn)
    teacher = CountingTeacher()
    assert ask(folder, a_dataset(TEXTS), teacher) == ledger
    assert teacher.asked == TEXTS[max(0, torn.count(b"\n") - 1) :]
    assert (folder / ROWS_NAME).read_bytes() == journal


@pytest.mark.parametrize("what", ["recipe", "rows"])
def test_other_inputs_start_anew(tmp_path: Path, what: str) -> None:
    with pytest.raises(Killed):
        ask(tmp_path, a_dataset(TEXTS), CountingTeacher(dies_after=5))
    texts = [*TEXTS, "one more"] if what == "rows" else TEXTS
    recipe = a_recipe(PRICE, "Which, please?" if what == "recipe" else "Which?")
    teacher = CountingTeacher()
    ledger = ask(tmp_path, a_dataset(texts), teacher, recipe)
    assert teacher.asked == texts
    assert ledger.accepted + sum(ledger.rejected.values()) == ledger.rows == len(texts)


def test_recorded_answers_that_changed_are_asked_again(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    first, _ = pipeline.run_annotate(pipeline.make_plan(tiny_recipe), folder, lambda *_: None)
    _, known = pipeline.run_annotate(pipeline.make_plan(tiny_recipe), folder, lambda *_: None)
    assert known
    answers = tiny_recipe.parent / "teacher.jsonl"
    answers.write_text(
        answers.read_text(encoding="utf-8").replace('"label": "red"', '"label": "blue"'), encoding="utf-8"
    )
    second, known = pipeline.run_annotate(pipeline.make_plan(tiny_recipe), folder, lambda *_: None)
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
    ledger = annotate(a_recipe(), a_dataset(texts), teacher, lambda _: True, folder)
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
    assert (unpriced.recorded_usd, unpriced.usd_per_1000_requests) == (None, None)
    untold = ask(tmp_path / "untold", data, CountingTeacher(usage=False))
    assert (untold.recorded_usd, untold.usd_per_1000_requests) == (None, None)
    priced = ask(tmp_path / "priced", data, CountingTeacher())
    a_request = (100 * Decimal("0.15") + 10 * Decimal("0.60")) / 1_000_000
    assert priced.recorded_usd is not None
    assert Decimal(priced.recorded_usd) == 6 * a_request
    assert priced.usd_per_1000_requests == pytest.approx(float(1000 * a_request))


def test_one_answer_without_usage_makes_the_whole_cost_unknown() -> None:
    price = Price(input=Decimal(1), output=Decimal(2))
    known = CountingTeacher().answer(Row("1", "x", None, "train"))
    assert isinstance(known, Annotation)
    assert cost_usd(price, [known, known]) == Decimal("0.00024")
    for field in ("prompt_tokens", "completion_tokens"):
        assert cost_usd(price, [known, dataclasses.replace(known, **{field: None})]) is None


def test_unknown_token_counts_are_not_called_zero(tmp_path: Path) -> None:
    ledger = ask(tmp_path, a_dataset(TEXTS), CountingTeacher(usage=False))
    assert (ledger.prompt_tokens, ledger.completion_tokens) != (0, 0)
