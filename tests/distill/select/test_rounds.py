"""Strategies in rounds: how many rows each round asks about, which are random, and when a student is trained."""

import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.naive_bayes import MultinomialNB

from edgestill.distill.dataset import Row, row_id
from edgestill.distill.recipe import Recipe
from edgestill.distill.select.entropy import Entropy
from edgestill.distill.select.k_centre import KCentre
from edgestill.distill.select.random import Random
from edgestill.distill.select.rounds import Rounds
from edgestill.distill.select.selection import Choice, Work
from edgestill.distill.select.table import STRATEGIES, read_selection
from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.protocol import Annotation, Rejection

LABELS = ["red", "green"]
Pairs = Sequence[tuple[Row, Annotation]]


def a_row(text: str, split: str = "train") -> Row:
    return Row(row_id(text), text, None, split)


POOL = [a_row(f"{word} {i} {i * i} on day {i % 7}") for i in range(30) for word in ("tomato", "moss")]


def an_answer(row: Row) -> Annotation | Rejection:
    if "9" in row.text:
        return Rejection(row.id, "unparsable", "it said nothing", "")
    label = "red" if "tomato" in row.text else "green"
    return Annotation(row.id, label, None, None, 40, 10, None, label)


class SmallStudent:
    """Naive Bayes over words: a student that is trained in milliseconds."""

    def __init__(self, pairs: Pairs) -> None:
        self._words = TfidfVectorizer().fit([row.text for row in POOL])
        self._model = MultinomialNB().fit(self.embeddings([r.text for r, _ in pairs]), [a.label for _, a in pairs])

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.asarray(self._words.transform(texts).toarray())

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.asarray(self._model.predict_proba(self.embeddings(texts)))

    def answers(self, texts: Sequence[str]) -> list[str]:
        return [str(label) for label in self._model.predict(self.embeddings(texts))]


class Run:
    """One run of a strategy; remembers what it asked, trained and chose."""

    def __init__(self, pool: Sequence[Row], known: Pairs = (), stops_after: int | None = None) -> None:
        self.pool, self.known, self.stops_after = pool, known, stops_after
        self.asked: list[str] = []
        self.trained_on: list[int] = []
        self.choices: list[Choice] = []
        self.kept: list[Choice] = []

    def ask(self, rows: Sequence[Row], form: Form | None = None) -> dict[str, Annotation | Rejection | None]:
        assert form is None
        found: dict[str, Annotation | Rejection | None] = {}
        for row in rows:
            stopped = self.stops_after is not None and len(self.asked) >= self.stops_after
            found[row.id] = None if stopped else an_answer(row)
            self.asked += [] if stopped else [row.id]
        return found

    def train(self, pairs: Pairs) -> SmallStudent:
        self.trained_on.append(len(pairs))
        return SmallStudent(pairs)

    def choose(self, make: Any) -> Choice:
        place = len(self.choices)
        self.choices.append(self.kept[place] if place < len(self.kept) else make())
        return self.choices[-1]

    def by(self, strategy: Rounds) -> "Run":
        dev = [(row, answer) for row in POOL[:9] if isinstance(answer := an_answer(row), Annotation)]
        task = TaskSection(instruction="Which?", labels=dict.fromkeys(LABELS, ""))
        work = Work(self.pool, self.known, self.ask, self.train, task, dev=dev, choose=self.choose)
        strategy.acquire(work)
        return self


@settings(deadline=None)  # of a slow machine
@given(
    rows=st.integers(2, 400), pool=st.integers(1, 400), rounds=st.integers(2, 9), labels=st.integers(0, 80),
    first=st.integers(1, 399) | st.none(),
)  # fmt: skip
def test_the_rounds_share_the_rows(rows: int, pool: int, rounds: int, labels: int, first: int | None) -> None:
    first = None if first is None else min(first, rows - 1)
    sizes = Entropy(rows=rows, first_rows=first, rounds=rounds).sizes(pool, labels)
    assert sum(sizes) == min(rows, pool)
    assert min(sizes) > 0
    assert len(sizes) <= rounds
    if rows >= pool:  # all are asked about: there is nothing to choose
        assert sizes == [pool]
    else:
        assert len(sizes) > 1
        assert sizes[0] == (first or max(1, min(rows // 2, max(2 * labels, rows // 10))))
        assert max(sizes[1:]) - min(sizes[1:]) <= 1


def test_rows_are_asked_about_once_and_rejected_ones_count() -> None:
    run = Run(POOL).by(Entropy(rows=24, first_rows=8, rounds=3))
    assert len(run.asked) == len(set(run.asked)) == 24
    rejected = [row.id for row in POOL if isinstance(an_answer(row), Rejection)]
    accepted = [sum(name not in rejected for name in run.asked[:count]) for count in (8, 16)]
    assert run.trained_on == accepted
    assert accepted[1] < 16
    assert [choice.facts["trained_rows"] for choice in run.choices] == [0, *accepted]
    assert [choice.facts.get("dev_agreement") is None for choice in run.choices] == [True, False, False]


def test_rows_known_by_hand_are_learnt_from_and_not_asked_about() -> None:
    known = [(row, answer) for row in POOL[:10] if isinstance(answer := an_answer(row), Annotation)]
    run = Run(POOL[10:], known).by(Entropy(rows=10, first_rows=4, rounds=2))
    asked = {row.id: an_answer(row) for row in POOL if row.id in run.asked[:4]}
    assert run.trained_on == [len(known) + sum(isinstance(answer, Annotation) for answer in asked.values())]
    assert not {row.id for row, _ in known} & set(run.asked)


def test_the_student_that_ranks_is_the_one_that_was_trained_on_the_answers_so_far() -> None:
    run = Run(POOL).by(Entropy(rows=20, first_rows=8, rounds=2))
    pairs = [(row, answer) for row in by_id(run.asked[:8]) if isinstance(answer := an_answer(row), Annotation)]
    rest = [row for row in POOL if row.id not in run.asked[:8]]
    chances = SmallStudent(pairs).probabilities([row.text for row in rest])
    unsure = -(chances * np.log(chances)).sum(-1)
    wanted = sorted(unsure, reverse=True)[:12]
    taken = {row.id: float(value) for row, value in zip(rest, unsure, strict=True)}
    assert [taken[name] for name in run.asked[8:]] == pytest.approx(wanted)


def by_id(names: Sequence[str]) -> list[Row]:
    rows = {row.id: row for row in POOL}
    return [rows[name] for name in names]


@pytest.mark.parametrize("kind", [Entropy, KCentre])
def test_the_same_seed_takes_the_same_random_rows_whatever_the_strategy_and_the_order_of_the_pool(
    kind: type[Rounds],
) -> None:
    shuffled = random.Random(5).sample(POOL, len(POOL))
    control = Run(POOL).by(Random(rows=20, seed=3)).asked
    assert Run(shuffled).by(Random(rows=20, seed=3)).asked == control
    assert Run(POOL).by(Random(rows=8, seed=3)).asked == control[:8]
    assert Run(shuffled).by(kind(rows=20, first_rows=8, seed=3)).asked[:8] == control[:8]
    assert Run(POOL).by(Random(rows=20, seed=4)).asked != control


def test_random_rows_need_no_student_and_are_asked_about_in_one_round() -> None:
    run = Run(POOL).by(Random(rows=20, first_rows=5, rounds=4))
    assert (run.trained_on, len(run.choices), len(run.asked)) == ([], 1, 20)


def test_nothing_is_trained_where_all_rows_are_asked_about_anyway() -> None:
    run = Run(POOL[:12]).by(Entropy(rows=50))
    assert (run.trained_on, len(run.asked)) == ([], 12)


def test_without_any_usable_answer_the_next_round_is_random_too() -> None:
    pool = [row for row in POOL if isinstance(an_answer(row), Rejection)]
    run = Run(pool).by(Entropy(rows=4, first_rows=2, rounds=3))
    assert (run.trained_on, len(run.asked)) == ([], 4)
    assert run.asked == Run(pool).by(Random(rows=4)).asked


@pytest.mark.parametrize("stops_after", range(20))
def test_after_a_stop_the_same_rows_are_asked_about_as_without(stops_after: int) -> None:
    strategy = Entropy(rows=20, first_rows=8, rounds=3)
    whole, stopped = Run(POOL).by(strategy), Run(POOL, stops_after=stops_after).by(strategy)
    assert whole.asked[:stops_after] == stopped.asked
    assert len(stopped.choices) == 1 + (stops_after >= 8) + (stops_after >= 14)  # nothing is chosen after a stop
    again = Run(POOL)
    again.kept = stopped.choices
    assert again.by(strategy).asked == whole.asked
    assert len(again.trained_on) == 3 - len(stopped.choices)  # what was chosen is not chosen again


def test_where_the_endpoint_fails_nothing_more_is_chosen_and_the_next_run_goes_on() -> None:
    strategy, whole, down = Entropy(rows=20, first_rows=8, rounds=3), Run(POOL), Run(POOL)

    def ask(rows: Sequence[Row], form: Form | None = None) -> dict[str, Annotation | Rejection | None]:
        if down.choices[1:]:
            return {row.id: Rejection(row.id, "endpoint_error", "500", "") for row in rows}
        return Run.ask(down, rows, form)

    whole.by(strategy)
    down.ask = ask  # type: ignore[method-assign]
    down.by(strategy)
    assert len(down.choices) == 2, "the third would have been made of what the second knew"
    again = Run(POOL)
    again.kept = down.choices
    assert again.by(strategy).asked == whole.asked


SHORTEST: dict[str, Any] = {
    "name": "short",
    "task": {"instruction": "Which?", "labels": LABELS},
    "data": {"pool": "pool.jsonl"},
    "teacher": {"kind": "replay", "path": "teacher.jsonl"},
}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"strategy": "entropy"}, r"^rows is missing \(keys of strategy entropy: rows, first_rows, rounds, seed\)$"),
        ({"strategy": "entropy", "rows": 0}, "rows Input should be greater than or equal to 1"),
        ({"strategy": "entropy", "rows": 9, "first_rows": 9}, "there is no other"),
        ({"strategy": "margin", "rows": 9, "rounds": 1}, "there is no other"),
        ({"strategy": "random", "rows": 9, "first_rows": 10}, "^first_rows is 10, but rows is 9"),
        ({"strategy": "entropy", "rows": 9, "row": 9}, "^row is unknown"),
        ({"strategy": ["random", "entropy"]}, "is not known; known: all"),
        ({"strategy": "entropi", "rows": 9}, "'entropi' is not known; known: all"),
        ("entropy", "wanted a section such as"),
    ],
)
def test_a_section_that_says_nothing_sensible_is_refused_in_one_line(section: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_selection(section)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "possible"), [("random", True), ("k_centre", True), ("margin", False)])
def test_a_task_that_generates_is_for_strategies_without_probabilities(name: str, possible: bool) -> None:
    data = {**SHORTEST, "task": {"kind": "generate", "instruction": "What?"}, "select": {"strategy": name, "rows": 9}}
    if possible:
        assert Recipe.model_validate(data).select.strategy == name
    else:
        with pytest.raises(
            ValueError, match=r"strategy margin ranks by label probabilities.* write strategy: random, k"
        ):
            Recipe.model_validate(data)


@pytest.mark.parametrize("name", ["random", "k_centre", "entropy"])
def test_an_estimate_counts_as_many_rows_as_will_be_asked_about(name: str) -> None:
    strategy = read_selection({"strategy": name, "rows": 20, "seed": 3})
    likely = [row.id for row in strategy.likely(POOL, 2)]
    assert len(likely) == 20
    assert likely == Run(POOL).by(Random(rows=20, seed=3)).asked
    assert len(strategy.likely(POOL[:7], 2)) == 7


def test_the_strategy_that_the_documentation_writes_is_one_file_and_a_line_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "select.md").read_text(encoding="utf-8")
    path = tmp_path / "shortest.py"
    path.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("shortest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(STRATEGIES, "shortest", module.Shortest)
    keys = {"strategy": "shortest", "rows": 20, "first_rows": 8, "rounds": 2, "sure": 1.0}
    section = Recipe.model_validate({**SHORTEST, "select": keys}).select
    assert isinstance(section, Rounds)
    run = Run(POOL).by(section)
    taken, left = by_id(run.asked[8:]), [row for row in POOL if row.id not in run.asked]
    assert (len(run.asked), len(run.trained_on)) == (20, 1)
    assert max(len(row.text) for row in taken) <= min(len(row.text) for row in left)
