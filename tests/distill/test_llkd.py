"""LLKD's thresholds are the formulas; the gates are monotone and never lose their heads; the lazy pass asks less."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgestill.distill.dataset import Dataset, Row, row_id
from edgestill.distill.plan import make_plan
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.distill.select.llkd import LLKD
from edgestill.distill.select.moving_gate import MovingGate, MovingThreshold, TwoSignalGate, selected_weights
from edgestill.distill.select.selection import Work
from edgestill.distill.select.student_uncertainty import ByStudentUncertainty
from edgestill.distill.select.table import read_selection
from edgestill.distill.select.teacher_confidence import ByTeacherConfidence
from edgestill.distill.select.turns import Asked, ask_in_turns
from edgestill.distill.student.train import train_learner
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.distill.teacher.replay import ReplayTeacher
from edgestill.runtime.errors import EdgestillError, UsageError

Floats = NDArray[np.float64]
Batch = tuple[list[Annotation], Floats]


def annotation(label: str, odds: Mapping[str, float] | None, corrected: bool = False) -> Annotation:
    return Annotation("0", label, None if odds is None else dict(odds), None, 1, 1, None, "", corrected=corrected)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"label {number}" for number in range(count))


def a_batch(rng: np.random.Generator, classes: int, rows: int) -> Batch:
    """Answers of a teacher, whose label is its likeliest, and a student's probabilities: some sure, some not."""
    labels = names(classes)
    teacher = rng.dirichlet(np.full(classes, rng.choice([0.1, 1.0])), rows)
    student = rng.dirichlet(np.full(classes, rng.choice([0.05, 1.0, 20.0])), rows)
    answers = [annotation(labels[row.argmax()], dict(zip(labels, row.tolist(), strict=True))) for row in teacher]
    return answers, student


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, float, list[Batch]]:
    """(classes, decay, batches)"""
    classes, rng = draw(st.integers(2, 6)), np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
    return classes, draw(st.sampled_from([0.0, 0.5, 0.95, 0.999])), [a_batch(rng, classes, rows) for rows in sizes]


class Naive:
    """The formulas of the docs, a number at a time."""

    def __init__(self, classes: int, decay: float) -> None:
        self.l, self.classes = decay, range(classes)
        self.tau_t, self.rho_t = 1 / classes, [1 / classes] * classes
        self.tau_s: float | None = None
        self.rho_s: list[float] = []

    def step(self, answers: Sequence[Annotation], student: Floats) -> list[float]:
        odds = [list((answer.probabilities or {}).values()) for answer in answers]
        c, y = [max(row) for row in odds], [row.index(max(row)) for row in odds]
        u = [-sum(p * math.log(p) for p in row if p > 0) / math.log(len(row)) for row in student.tolist()]
        count = len(c)
        self.tau_t = self.l * self.tau_t + (1 - self.l) * sum(c) / count
        for k in self.classes:
            self.rho_t[k] = self.l * self.rho_t[k] + (1 - self.l) * sum(row[k] for row in odds) / count
        mean = sum(u) / count
        of = {k: [u[b] for b in range(count) if y[b] == k] for k in self.classes}
        if self.tau_s is None:
            self.tau_s = mean
            self.rho_s = [sum(of[k]) / len(of[k]) if of[k] else mean for k in self.classes]
        else:
            self.tau_s = self.l * self.tau_s + (1 - self.l) * mean
            for k in self.classes:
                if of[k]:
                    self.rho_s[k] = self.l * self.rho_s[k] + (1 - self.l) * sum(of[k]) / len(of[k])
        raw = [
            max(c[b] * u[b], 1e-9)
            if c[b] >= self.rho_t[y[b]] / max(self.rho_t) * self.tau_t - 1e-9
            and u[b] >= self.rho_s[y[b]] / (max(self.rho_s) or 1.0) * self.tau_s - 1e-9
            else 0.0
            for b in range(count)
        ]
        kept = [value for value in raw if value > 0]
        return [value * len(kept) / sum(kept) if kept else 0.0 for value in raw]


@settings(max_examples=60, deadline=None)
@given(streams())
def test_thresholds_selection_and_weights_are_the_formulas(stream: tuple[int, float, list[Batch]]) -> None:
    classes, decay, batches = stream
    gate, naive = LLKD(decay=decay, patience_steps=10**6).gate(names(classes)), Naive(classes, decay)
    for answers, student in batches:
        np.testing.assert_allclose(gate.weights(answers, student), naive.step(answers, student), rtol=1e-6, atol=1e-9)
        assert gate.teacher.threshold.overall == pytest.approx(naive.tau_t)
        assert gate.student.threshold.overall == pytest.approx(naive.tau_s)
        of_class = [rho / max(naive.rho_t) * naive.tau_t for rho in naive.rho_t]
        np.testing.assert_allclose(gate.teacher.threshold.by_classes(), of_class, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(streams(), st.booleans())
def test_weights_have_mean_one_over_what_is_selected_and_no_class_has_more_than_the_threshold_of_all(
    stream: tuple[int, float, list[Batch]], weighted: bool
) -> None:
    classes, decay, batches = stream
    every: Sequence[Any] = (
        LLKD(decay=decay, weighted=weighted),
        LLKD(decay=decay, weighted=weighted, teacher_class="confidence"),
        ByTeacherConfidence(decay=decay, weighted=weighted),
        ByStudentUncertainty(decay=decay, weighted=weighted),
    )
    for keys in every:
        gate: MovingGate = keys.gate(names(classes))
        for answers, student in batches:
            weights = gate.weights(answers, student)
            assert np.isfinite(weights).all()
            assert (weights >= 0).all()
            selected = weights[weights > 0]
            assert not len(selected) or selected.mean() == pytest.approx(1.0)
            assert weighted or set(selected.tolist()) <= {1.0}
            for signal in gate.signals.values():
                threshold = signal.threshold
                assert threshold.overall is not None
                assert (threshold.by_classes() <= threshold.overall + 1e-12).all()
                assert 0 <= threshold.overall <= 1


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(4, 12), st.floats(0.01, 1.0), st.booleans())
def test_a_surer_teacher_or_a_less_sure_student_never_deselects_a_row(
    seed: int, classes: int, rows: int, by: float, teacher: bool
) -> None:
    rng = np.random.default_rng(seed)
    before, (answers, student) = a_batch(rng, classes, rows), a_batch(rng, classes, rows)
    odds = np.array([list((answer.probabilities or {}).values()) for answer in answers])
    place = int(rng.integers(rows))

    def weights(odds: Floats, student: Floats) -> Floats:
        gate = LLKD(decay=0.95).gate(names(classes))
        gate.weights(*before)
        said = [
            annotation(a.label, dict(zip(names(classes), row.tolist(), strict=True)))
            for a, row in zip(answers, odds, strict=True)
        ]
        return gate.weights(said, student)

    more_odds, more_student = odds.copy(), student.copy()
    if teacher:
        sure = np.eye(classes)[odds[place].argmax()]
        more_odds[place] = (1 - by) * odds[place] + by * sure
    else:
        more_student[place] = (1 - by) * student[place] + by / classes
    if weights(odds, student)[place] > 0:
        assert weights(more_odds, more_student)[place] > 0


@pytest.mark.parametrize(("rows", "share"), [(3, 0.3), (7, 0.1), (5, 0.5)])
def test_equal_signals_are_not_refused_for_their_rounding(rows: int, share: float) -> None:
    gate = LLKD(decay=0.93).gate(names(2))
    answers = [annotation("label 0", {"label 0": 0.9, "label 1": 0.1})] * rows
    for _ in range(200):
        weights = gate.weights(answers, np.full((rows, 2), [share, 1 - share]))
        assert weights == pytest.approx(np.ones(rows))


def test_nothing_selected_weighs_nothing_and_a_sure_student_gives_no_nan() -> None:
    assert selected_weights(np.zeros(3, dtype=bool), np.ones(3)).tolist() == [0.0, 0.0, 0.0]
    gate = LLKD().gate(names(3))
    answers = [annotation("label 1", {"label 1": 1.0})] * 4
    for _ in range(3):
        weights = gate.weights(answers, np.eye(3)[[1, 1, 1, 1]])
        assert weights == pytest.approx(np.ones(4))  # no entropy anywhere: no row is less sure than the others


def test_a_class_that_is_refused_for_long_gets_lower_thresholds_until_a_row_of_it_is_selected() -> None:
    threshold = MovingThreshold(2, decay=0.5, patience_steps=3, start=0.8)
    both, none = np.array([0, 1]), np.array([False, False])
    seen = []
    for _ in range(6):
        threshold.note(both, none)
        seen.append(threshold.by_classes().tolist())
    assert seen == [[0.8, 0.8]] * 3 + [[0.4, 0.4], [0.2, 0.2], [0.1, 0.1]]
    threshold.note(both, np.array([True, False]))
    assert threshold.by_classes().tolist() == [0.8, 0.05]
    threshold.note(np.array([0]), np.array([False]))
    assert threshold.by_classes().tolist() == [0.8, 0.05]  # a class that is not in the batch is not refused


def test_a_label_by_hand_is_sure_and_a_row_of_unknown_confidence_is_left_out() -> None:
    gate = LLKD(decay=0.0).gate(names(2))
    sure = {"label 0": 0.9, "label 1": 0.1}
    answers = [annotation("label 0", sure), annotation("label 0", None), annotation("label 1", None, corrected=True)]
    weights = gate.weights(answers, np.full((3, 2), 0.5))
    assert weights[1] == 0
    assert weights[2] > weights[0] > 0 or weights[0] == 0
    assert weights[2] > 0
    assert gate.teacher.threshold.overall == pytest.approx((0.9 + 1.0) / 2)


def test_confidence_is_that_of_the_label_which_is_learnt() -> None:
    gate = ByTeacherConfidence(decay=0.0, weighted=False).gate(names(2))
    says_otherwise = annotation("label 0", {"label 0": 0.2, "label 1": 0.8})
    weights = gate.weights(
        [says_otherwise, annotation("label 0", {"label 0": 0.8, "label 1": 0.2})], np.full((2, 2), 0.5)
    )
    assert weights.tolist() == [0.0, 1.0]


def test_a_gate_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(0)
    stream = [a_batch(rng, 4, 9) for _ in range(8)]
    one, other = LLKD(decay=0.9).gate(names(4)), LLKD(decay=0.9).gate(names(4))
    for batch in stream[:5]:
        one.weights(*batch)
    other.restore(json.loads(json.dumps(one.state())))
    for batch in stream[5:]:
        assert one.weights(*batch).tolist() == other.weights(*batch).tolist()
    assert one.facts() == other.facts()


def test_a_teacher_without_probabilities_is_refused_in_one_line() -> None:
    few = [annotation("label 0", {"label 0": 1.0})] * 2 + [annotation("label 0", None)] * 3
    for keys in (LLKD(), ByTeacherConfidence()):
        with pytest.raises(EdgestillError, match="3 of 5 answers have none") as caught:
            keys.gate(names(2)).check(few)
        assert "logprobs" in str(caught.value.hint)
        keys.gate(names(2)).check(few[:4])
    ByStudentUncertainty().gate(names(2)).check(few)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"strategy": "llkd", "rows": 5}, "add lazy: true"),
        ({"strategy": "llkd", "lazy_epochs": 2.0}, "add lazy: true"),
        ({"strategy": "llkd", "gate_training": True}, "add lazy: true"),
        ({"strategy": "llkd", "decay": 1.0}, "decay"),
        ({"strategy": "teacher_confidence", "lazy": True}, "lazy"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(value: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_selection(value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_cannot_give_confidence_or_one_label_is_refused(tiny_recipe: Path) -> None:
    recipe = read_recipe(tiny_recipe).model_dump(mode="json")
    asked: dict[str, Any] = {**recipe["teacher"], "kind": "openai", "model": "m", "path": None, "logprobs": False}
    told = Recipe.model_validate({**recipe, "teacher": {**asked, "logprobs": True}})
    mute = Recipe.model_validate({**recipe, "teacher": asked})
    sets = told.model_copy(update={"task": told.task.model_copy(update={"kind": "multilabel"})})
    batch = told.model_copy(update={"teacher": told.teacher.model_copy(update={"mode": "batch"})})
    LLKD(lazy=True).check(told)
    for select, whole, words in (
        (LLKD(), mute, "logprobs: true or votes: 5"),
        (ByTeacherConfidence(), mute, "logprobs: true or votes: 5"),
        (ByStudentUncertainty(), sets, "task.kind is multilabel"),
        (LLKD(lazy=True), batch, "mode: online"),
    ):
        with pytest.raises(ValueError, match=words):
            select.check(whole)
    ByStudentUncertainty().check(mute)


class Desk:
    """A recipe's rows, its recorded teacher, and what was asked of it."""

    def __init__(self, recipe_path: Path, kind: str, base: Path, cap: int | None = None) -> None:
        text = recipe_path.read_text(encoding="utf-8").replace("student:", f"student: {{base: {base}, kind: {kind}}} #")
        text = text.replace("learning_rate: 0.01", f"learning_rate: {0.01 if kind == 'causal' else 0.0003}")
        recipe_path.with_name(f"{kind}.yaml").write_text(text, encoding="utf-8")
        with_odds(recipe_path.with_name("teacher.jsonl"))
        self.plan = make_plan(recipe_path.with_name(f"{kind}.yaml")).students[0]
        self.teacher = ReplayTeacher(recipe_path.with_name("teacher.jsonl"), self.plan.recipe)
        lines = recipe_path.with_name("pool.jsonl").read_text(encoding="utf-8").splitlines()
        self.pool = [Row(row_id(text), text, None, "train") for text in (json.loads(line)["text"] for line in lines)]
        self.asked: list[str] = []
        self.turns = 0
        self.cap = cap

    def ask(self, rows: Sequence[Row]) -> Mapping[str, Annotation | Rejection | None]:
        self.turns += 1
        found: dict[str, Annotation | Rejection | None] = {}
        for row in rows:
            new = row.id not in self.asked
            capped = new and self.cap is not None and len(self.asked) >= self.cap
            found[row.id] = None if capped else self.teacher.answer(row)
            self.asked += [row.id] if new and not capped else []
        return found

    def train(self, pairs: Sequence[tuple[Row, Annotation]]) -> Any:
        recipe = self.plan.recipe
        return train_learner(recipe, self.plan.base, self.plan.task, self.plan.tokenizer, pairs)[0]

    def work(self, known: Sequence[tuple[Row, Annotation]] = ()) -> Work:
        return Work(self.pool, known, self.ask, self.train, self.plan.recipe.task)


def with_odds(path: Path) -> None:
    """Give every recorded answer probabilities: sure of nine rows in ten."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, record in enumerate(records):
        sure = 0.55 if number % 10 == 0 else 0.97
        other = "green" if record["label"] == "red" else "red"
        record["probabilities"] = {record["label"]: sure, other: 1 - sure}
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def bases(tiny_base: Path, tiny_encoder: Path) -> dict[str, Path]:
    return {"causal": tiny_base, "encoder": tiny_encoder}


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_the_lazy_pass_asks_a_part_of_the_rows_the_same_ones_again(
    tiny_recipe: Path, bases: dict[str, Path], kind: str
) -> None:
    asked = []
    for _ in range(2):
        desk = Desk(tiny_recipe, kind, bases[kind])
        LLKD(lazy=True).acquire(desk.work())
        asked.append(desk.asked)
        assert desk.turns > 1
    assert asked[0] == asked[1]
    assert 0 < len(asked[0]) < len(desk.pool)
    everything = Desk(tiny_recipe, kind, bases[kind])
    LLKD().acquire(everything.work())
    assert len(everything.asked) == len(desk.pool)
    assert everything.turns == 1


def test_the_lazy_pass_keeps_to_its_rows_and_more_passes_ask_more(tiny_recipe: Path, bases: dict[str, Path]) -> None:
    capped = Desk(tiny_recipe, "encoder", bases["encoder"])
    LLKD(lazy=True, rows=7, lazy_epochs=3).acquire(capped.work())
    once, often = (Desk(tiny_recipe, "encoder", bases["encoder"]) for _ in range(2))
    LLKD(lazy=True).acquire(once.work())
    LLKD(lazy=True, lazy_epochs=3).acquire(often.work())
    assert len(capped.asked) == 7
    assert len(set(often.asked)) == len(often.asked) > len(once.asked)


def test_a_teacher_that_stops_ends_the_pass_and_running_again_goes_on_with_the_same_rows(
    tiny_recipe: Path, bases: dict[str, Path]
) -> None:
    whole, cut = Desk(tiny_recipe, "encoder", bases["encoder"]), Desk(tiny_recipe, "encoder", bases["encoder"], cap=9)
    LLKD(lazy=True).acquire(whole.work())
    LLKD(lazy=True).acquire(cut.work())
    assert cut.asked == whole.asked[:9]
    cut.cap = None
    LLKD(lazy=True).acquire(cut.work())
    assert cut.asked == whole.asked


def test_rows_by_hand_are_learnt_first_and_never_asked_about(tiny_recipe: Path, bases: dict[str, Path]) -> None:
    desk = Desk(tiny_recipe, "encoder", bases["encoder"])
    known = [(row, annotation(str(desk.teacher.answer(row).label), None, corrected=True)) for row in desk.pool[:6]]  # type: ignore[union-attr]
    desk.pool = desk.pool[6:]
    LLKD(lazy=True).acquire(desk.work(known))
    assert desk.asked
    assert not {row.id for row, _ in known} & set(desk.asked)


def test_a_lazy_teacher_without_probabilities_is_refused_after_its_first_batch(
    tiny_recipe: Path, bases: dict[str, Path]
) -> None:
    desk = Desk(tiny_recipe, "encoder", bases["encoder"])
    path = tiny_recipe.with_name("teacher.jsonl")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    bare = [{key: value for key, value in record.items() if key != "probabilities"} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in bare), encoding="utf-8")
    desk.teacher = ReplayTeacher(path, desk.plan.recipe)
    with pytest.raises(EdgestillError, match="have none"):
        LLKD(lazy=True).acquire(desk.work())
    assert desk.turns == 1


def test_late_answers_without_probabilities_are_left_out_of_the_lazy_pass(
    tiny_recipe: Path, bases: dict[str, Path]
) -> None:
    turns: list[list[str]] = []
    for _ in range(2):
        desk = Desk(tiny_recipe, "encoder", bases["encoder"])
        late, turns = set(turns[-1] if turns else ()), []

        def ask(rows: Sequence[Row], desk: Desk = desk, late: set[str] = late, turns: Any = turns) -> Any:
            turns.append([row.id for row in rows])
            found = desk.ask(rows)
            return {name: replace(one, probabilities=None) if name in late else one for name, one in found.items()}

        LLKD(lazy=True).acquire(replace(desk.work(), ask=ask))
    assert late in map(set, turns)
    assert 0 < len(late) < len(desk.asked) / 2


class Flaky:
    """A teacher whose endpoint fails for the rows that are `down`; keeps what it was asked about, in order."""

    name, fingerprint = "flaky", "0f"

    def __init__(self, teacher: ReplayTeacher, down: Set[str]) -> None:
        self.teacher, self.down = teacher, down
        self.asked: list[str] = []

    def ask(self, rows: Iterable[Row], told: Any) -> None:
        del told
        self.asked += [row.id for row in rows]

    def answer(self, row: Row) -> Annotation | Rejection | None:
        if row.id in self.down:
            return Rejection(row.id, "endpoint_error", "HTTP 500", "")
        return self.teacher.answer(row) if row.id in self.asked else None


def lazily(desk: Desk, down: Set[str], folder: Path) -> tuple[Flaky, Asked]:
    teacher, select = Flaky(desk.teacher, down), LLKD(lazy=True, rows=20)
    recipe, data = desk.plan.recipe.model_copy(update={"select": select}), Dataset(tuple(desk.pool))
    told: tuple[Any, ...] = (lambda *_: None, lambda pairs, _: desk.train(pairs))
    inputs: tuple[Any, ...] = (recipe, data, teacher, lambda row: None, folder, "0f", *told)
    return teacher, ask_in_turns(*inputs)


def test_rows_that_failed_are_asked_again_and_no_others_in_their_place(
    tiny_recipe: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    desk = Desk(tiny_recipe, "encoder", bases["encoder"])
    whole, _ = lazily(desk, set(), tmp_path / "whole")
    first, _ = lazily(desk, set(whole.asked[1:5]), tmp_path / "failed")
    again, asked = lazily(desk, set(), tmp_path / "failed")
    assert set(again.asked) == set(first.asked)
    assert asked.selection is not None
    assert asked.selection["asked_rows"] == len(first.asked) <= 20


def test_an_endpoint_that_is_down_in_every_turn_ends_the_pass(
    tiny_recipe: Path, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgestill.distill.teacher.online.GIVE_UP_AFTER", 9)
    desk = Desk(tiny_recipe, "encoder", bases["encoder"])
    teacher, asked = lazily(desk, {row.id for row in desk.pool}, tmp_path)
    assert str(asked.stopped).startswith(f"{len(teacher.asked)} rows in a row failed: HTTP 500")
    assert 9 <= len(teacher.asked) < 9 + 8  # it is a batch that ends
    one, asked = lazily(desk, {teacher.asked[0]}, tmp_path)
    assert asked.stopped is None
    assert 9 < len(one.asked) <= 20


def test_the_lazy_gate_asks_by_the_students_class_and_then_gates_by_the_teacher() -> None:
    gate = LLKD(decay=0.0).gate(names(2))
    chances = np.array([[0.9, 0.1], [0.99, 0.01], [0.4, 0.6]])
    assert gate.wanted(chances).tolist() == [True, False, True]
    assert gate.student.threshold.overall == pytest.approx(0.507, abs=1e-3)  # above the first row's 0.469
    assert gate.student.threshold.by_classes().tolist() == pytest.approx([0.143, 0.507], abs=1e-3)
    weights = gate.answered(
        [
            annotation("label 0", {"label 0": 0.95, "label 1": 0.05}),
            annotation("label 0", {"label 0": 0.5, "label 1": 0.5}),
        ],
        chances[[0, 2]],
    )
    assert weights == pytest.approx(np.array([1.0, 0.0]))


def test_the_recipe_knows_the_strategies(tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text(encoding="utf-8")
    tiny_recipe.write_text(text + "select: {strategy: llkd, decay: 0.9, lazy: true, rows: 20}\n", encoding="utf-8")
    select = read_recipe(tiny_recipe).select
    assert select == LLKD(decay=0.9, lazy=True, rows=20)
    assert select.is_active
    assert not select.asks_all
    assert LLKD().asks_all
    tiny_recipe.write_text(text + "select: {strategy: llkd, decays: 0.9}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="decays"):
        read_recipe(tiny_recipe)


def test_the_gate_is_the_strategys_own() -> None:
    assert isinstance(LLKD().gate(names(2)), TwoSignalGate)
    assert list(ByTeacherConfidence().gate(names(2)).facts()["thresholds"]) == ["teacher"]
    assert list(ByStudentUncertainty().gate(names(2)).facts()["thresholds"]) == ["student"]


def test_the_rows_that_were_asked_lazily_may_all_be_learnt_from() -> None:
    assert LLKD().gate(names(2)) is not None
    assert LLKD(lazy=True).gate(names(2)) is None
    assert LLKD(lazy=True)._gate(names(2)) is not None, "the pass itself is gated all the same"
    assert LLKD(lazy=True, gate_training=True).gate(names(2)) is not None


@pytest.mark.parametrize("lazy", [False, True])
def test_annotate_and_train_go_through_the_gate(tiny_recipe: Path, tiny_encoder: Path, lazy: bool, cli: Any) -> None:
    text = tiny_recipe.read_text(encoding="utf-8").replace(
        "student:", f"student: {{base: {tiny_encoder}, kind: encoder}} #"
    )
    text = text.replace("learning_rate: 0.01", "learning_rate: 0.003, quantize_aware: false")
    text += "bench: {against: [teacher]}\n"
    select = "select: {strategy: llkd" + (", lazy: true, gate_training: true}" if lazy else "}")
    tiny_recipe.write_text(text + select + "\n", encoding="utf-8")
    out = tiny_recipe.parent / "run"
    if lazy:
        assert "answers have none" in cli("annotate", tiny_recipe, "--out", out).stderr
    with_odds(tiny_recipe.with_name("teacher.jsonl"))
    for verb in ("annotate", "train"):
        done = cli(verb, tiny_recipe, "--out", out)
        assert done.returncode == 0, done.stderr[-2000:]
    ledger = json.loads((out / "annotations" / "annotations.json").read_text(encoding="utf-8"))
    training = json.loads((out / "student" / "model" / "training.json").read_text(encoding="utf-8"))
    pool = ledger["splits"]["train"] + ledger["not_selected"]
    assert (ledger["not_selected"] > 0) == lazy
    assert sum(training["gate"]["rows_by_label"].values()) == ledger["splits"]["train"] == training["rows"]
    assert 0 < training["gate"]["rows_used"] <= training["rows"] <= pool
    if lazy:
        (done,) = ledger["selection"]["rounds"]
        assert done["rows"] == ledger["selection"]["asked_rows"] == ledger["splits"]["train"]
        assert 0 < done["trained_rows"] <= done["rows"]
        assert done["forward_tokens"] > 0
