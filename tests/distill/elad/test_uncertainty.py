"""How unsure a student is: bounds, known values, and what a trained student's own trace shows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.distill.dataset import Row, row_id
from edgestill.distill.elad import uncertainty
from edgestill.distill.elad.doubt import doubts
from edgestill.distill.elad.explainer import Explainer
from edgestill.distill.elad.steps import prefixes
from edgestill.distill.plan import make_plan
from edgestill.distill.select.elad import Elad
from edgestill.distill.student.train import train_learner
from edgestill.distill.teacher.protocol import Annotation

SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda p: sum(p) > 0.01)


def shares(weights: list[float]) -> Any:
    return np.array(weights) / sum(weights)


@given(SHARES, SHARES)
def test_the_divergence_is_symmetric_zero_for_equals_and_at_most_ln_2(p: list[float], q: list[float]) -> None:
    a, b = shares(p), shares(q)
    found = uncertainty.js_divergence_nats(a, b)
    assert 0 <= found <= math.log(2) + 1e-12
    assert found == pytest.approx(uncertainty.js_divergence_nats(b, a), abs=1e-12)
    assert uncertainty.js_divergence_nats(a, a) == pytest.approx(0, abs=1e-12)


def test_distributions_that_share_nothing_are_ln_2_apart() -> None:
    assert uncertainty.js_divergence_nats(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(math.log(2))
    half = uncertainty.js_divergence_nats(np.array([1.0, 0]), np.array([0.5, 0.5]))  # by hand
    assert half == pytest.approx((math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2)


@given(st.lists(SHARES, min_size=1, max_size=6))
def test_a_soft_trace_is_between_0_and_1_and_repeating_a_state_adds_only_a_step(trace: list[list[float]]) -> None:
    found = [shares(each) for each in trace]
    within = uncertainty.intra_soft(found)
    assert 0 <= within <= 1
    steps = len(trace) - 1
    assert uncertainty.intra_soft([*found, found[-1]]) == pytest.approx(within * steps / (steps + 1), abs=1e-12)


def test_a_hard_trace_counts_the_steps_that_change_the_answer() -> None:
    assert uncertainty.intra_hard(["a", "a", "b", "a"]) == pytest.approx(2 / 3)
    assert uncertainty.intra_hard(["a", "a"]) == uncertainty.intra_hard(["a"]) == 0


def test_votes_are_unsure_by_their_entropy_as_a_share_of_what_is_possible() -> None:
    assert uncertainty.inter([["a"] * 4]) == 0
    assert uncertainty.inter([["a", "b", "c", "d"]]) == uncertainty.inter([["a", "a", "b", "b"]], 2) == pytest.approx(1)
    assert uncertainty.inter([["a", "a", "b", "b"]]) == pytest.approx(0.5)
    assert uncertainty.inter([["a", "b"], ["a", "a"]]) == pytest.approx(0.5)
    assert uncertainty.blend(1.0, 0.5, 0.25) == pytest.approx(0.625)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=2, max_size=6), min_size=1), st.sampled_from([None, 3]))
def test_uncertainty_between_explanations_is_between_0_and_1(votes: list[list[str]], answers: int | None) -> None:
    assert 0 <= uncertainty.inter(votes, answers) <= 1


def a_learner(recipe: Path, steps: int) -> Any:
    plan = make_plan(recipe).students[0]
    rows = [(f"{word} number {i}", label) for i in range(16) for word, label in (("ruby", "red"), ("moss", "green"))]
    pairs = [
        (
            Row(row_id(text), text, None, "train"),
            Annotation(row_id(text), label, None, f"I see a {text.split()[0]}. It is {label}.", 1, 1, None, ""),
        )
        for text, label in rows
    ]
    alone = plan.recipe.model_copy(update={"train": plan.recipe.train.model_copy(update={"epochs": float(steps)})})
    return train_learner(alone, plan.base, plan.task, plan.tokenizer, pairs)[0]


@pytest.fixture(scope="module")
def author(tiny_recipes: dict[str, Path]) -> Any:
    """A tiny decoder that writes a reason and then its answer, a word of the text, as one text."""
    recipe = tiny_recipes["causal"].with_name("chain.yaml")
    text = tiny_recipes["causal"].read_text(encoding="utf-8")
    text = text.replace("{kind: classify, ", "{kind: generate, answer_pattern: red|green, ").replace(
        ", labels: [red, green]", ""
    )
    recipe.write_text(text.replace("train: {", "train: {objective: chain, "), encoding="utf-8")
    return a_learner(recipe, 8)


@pytest.fixture(scope="module")
def learner(tiny_recipes: dict[str, Path]) -> Any:
    """A tiny decoder that has learnt two labels and to say why."""
    return a_learner(tiny_recipes["causal"], 6)


def test_a_student_in_training_writes_and_is_afterwards_as_it_was(learner: Any) -> None:
    texts = ["ruby number 99", "moss number 98"]
    before = learner.probabilities(texts)
    mode, attention = learner.causal.training, learner.causal.config._attn_implementation
    explainer = Explainer(learner, 24, 0.7)
    (explanation, answer), (_, other) = explainer.explain(texts)
    assert explanation.startswith("I see a")
    assert [answer, other] == learner.answers(texts) == ["red", "green"]
    assert explainer.chances([(text, "") for text in texts]) == pytest.approx(before, abs=1e-4)  # padded as packed
    assert (explainer.texts, explainer.forced) == (2, 4)
    assert (learner.causal.training, learner.causal.config._attn_implementation) == (mode, attention)
    assert learner.probabilities(texts) == pytest.approx(before, abs=1e-6)


def test_what_a_reason_says_moves_the_answer_that_is_forced_after_it(learner: Any) -> None:
    explainer, text = Explainer(learner, 24, 0.7), "ruby number 3"
    own = explainer.chances([(text, prefix) for prefix in prefixes("I see a ruby. It is red.")])
    other = explainer.chances([(text, prefix) for prefix in prefixes("I see a moss. It is green.")])
    assert own.shape == other.shape == (3, 2)
    assert own.sum(-1) == pytest.approx(np.ones(3))
    assert other[0] == pytest.approx(own[0])
    assert abs(other[-1][0] - own[-1][0]) > 1e-3
    assert uncertainty.intra_soft(list(other)) != uncertainty.intra_soft(list(own)) > 0


def test_what_is_drawn_follows_the_seed_and_not_the_batch_and_a_cold_student_repeats_itself(learner: Any) -> None:
    hot, cold, text = Explainer(learner, 24, 3.0), Explainer(learner, 24, 1e-3), "moss number 5"
    alone = [hot._write([(text, "")], [seed])[0] for seed in (1, 2)]
    assert alone[0] != alone[1]
    assert hot._write([("ruby", ""), (text, ""), (text, "")], [2, 1, 2])[1:] == alone
    assert cold._write([(text, "")], [1]) == cold._write([(text, "")], None)
    assert len(set(cold.sampled_answers([(text, "I see a moss.")] * 3, [1, 2, 3]))) == 1


def test_a_rows_doubt_does_not_depend_on_the_rows_beside_it(learner: Any) -> None:
    how = Elad(rows=8, samples=3, inter="each_step", temperature=2.0)
    texts = ["ruby number 5", "moss by a ruby, number 6"]
    together = doubts(Explainer(learner, 16, 2.0), texts, how)
    for text, found in zip(texts, together, strict=True):
        (alone,) = doubts(Explainer(learner, 16, 2.0), [text], how)
        assert (alone.explanation, alone.answer, alone.inter) == (found.explanation, found.answer, found.inter)
        assert alone.intra == pytest.approx(found.intra, abs=1e-4)
        assert found.score == pytest.approx((found.intra + found.inter) / 2)
        assert 0 < found.intra < 1
    steps = sum(len(prefixes(found.explanation)) - 1 for found in together)
    explainer = Explainer(learner, 16, 2.0)
    doubts(explainer, texts, how)
    assert explainer.texts == 2 + 3 * steps
    only = Explainer(learner, 16, 2.0)
    doubts(only, texts, Elad(rows=8, beta=1.0))
    assert only.texts == 2


def test_who_writes_reason_and_answer_as_one_text_is_read_in_two_parts(author: Any) -> None:
    explainer, texts = Explainer(author, 32, 0.7), ["ruby number 5", "moss number 6"]
    (explanation, answer), (_, other) = explainer.explain(texts)
    assert explanation.startswith("I see a")
    assert "Answer:" not in explanation
    ((short, _), _) = Explainer(author, 9, 0.7).explain(texts)
    assert short == "" or (short.endswith(".") and explanation.startswith(short)), "no step is half of one"
    assert {answer, other} <= {"red", "green"}
    assert (explainer.texts, explainer.forced) == (2, 0)  # the answer came with the reason
    places = [(texts[0], prefix) for prefix in prefixes(explanation)]
    assert set(explainer.answers(places)) <= {"red", "green", ""}
    assert explainer.sampled_answers([(texts[0], explanation)] * 2, [1, 2])
    assert explainer.forced >= len(places)
    (doubt, _) = doubts(explainer, texts, Elad(rows=8, samples=2))
    assert doubt.intra in [i / (len(places) - 1) for i in range(len(places))]
    assert doubt.inter in (0, 1)
