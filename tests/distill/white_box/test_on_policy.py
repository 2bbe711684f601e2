"""What a student writes itself: seeded by row, ended where it ends, weighing as what it stands for."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from white_runs import Made

from edgestill.distill.student.packing import Branch, pack
from edgestill.distill.student.writing import write
from edgestill.distill.white_box.on_policy import row_generator, sampler, stand_in


def test_a_row_draws_the_same_in_any_pass_of_a_step_and_otherwise_in_another() -> None:
    found = {}
    for step in (3, 4):
        for number in (0, 1, 40):
            torch.manual_seed((7 << 40) + (step << 12) + number)
            found[step, number] = row_generator((5, 6)).random()
    assert len({found[3, number] for number in (0, 1, 40)}) == 1
    assert found[3, 0] != found[4, 0]
    assert row_generator((5, 7)).random() != row_generator((5, 6)).random()


def test_samples_follow_the_tempered_distribution_and_padding_is_never_picked() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 90.0]).expand(4000, -1)
    found = sampler(range(4000), 3, 2.0)(logits)
    shares = torch.bincount(found, minlength=4).float() / 4000
    assert shares[3] == 0
    assert torch.allclose(shares[:3], (logits[0, :3] / 2).softmax(-1), atol=0.03)


def test_a_rows_sample_depends_on_its_seed_and_not_on_its_batch(made: Callable[..., Made]) -> None:
    learner, rows = made("{}")
    prompts = [row.label.prompt for row in rows]
    settings = (learner.task.eos_token_id, 5)
    together = write(learner.causal, prompts, *settings, sampler(range(5), learner.vocabulary, 1.0))
    alone = [
        write(learner.causal, [prompt], *settings, sampler([seed], learner.vocabulary, 1.0))[0]
        for seed, prompt in enumerate(prompts)
    ]
    other = write(learner.causal, prompts, *settings, sampler(range(5, 10), learner.vocabulary, 1.0))
    assert together == alone
    assert together != other


def test_a_student_that_ends_at_once_is_taught_at_that_one_place_and_one_that_does_not_up_to_the_limit(
    made: Callable[..., Made],
) -> None:
    learner, rows = made("{weight: 1, on_policy_fraction: 1, on_policy_tokens: 9, on_policy_temperature: 0.001}")
    rows = [dataclasses.replace(row, rationale=None, prompts=row.prompts[:1]) for row in rows[:1]]
    with torch.no_grad():
        likeliest = int((learner.hidden(pack(rows)) @ learner.head.t())[0].argmax())
    torch.manual_seed(7 << 40)
    ((long,), shares) = learner._shares(rows)
    assert len(long.label.completion) == 9
    assert long.label.completion[0] == likeliest
    learner.task = dataclasses.replace(learner.task, eos_token_id=likeliest)
    ((short,), shares) = learner._shares(rows)
    assert short.label.completion == (likeliest,)
    assert shares.apart.tolist() == [len(rows[0].label.completion)]  # which stands for all recorded ones


@given(st.integers(1, 30), st.integers(0, 29), st.integers(1, 40))
def test_a_sample_weighs_as_the_completion_it_stands_for(whole: int, reason: int, count: int) -> None:
    recorded = Branch((1,), tuple(range(whole)), reason=min(reason, whole - 1), even=True)
    found, multiples = stand_in(recorded, tuple(range(count)))
    assert len(multiples) == count == len(found.completion)
    assert found.reason < count
    assert sum(multiples[found.reason :]) == pytest.approx(whole - recorded.reason)
    if found.reason:
        assert sum(multiples[: found.reason]) == pytest.approx(recorded.reason)
    assert found.reason == 0 or recorded.reason > 0
    assert min(multiples) > 0


def test_on_policy_rows_keep_their_words_and_lose_the_recorded_divergence(
    made: Callable[..., Made], other_teacher: Path
) -> None:
    learner, rows = made("{weight: 0.25, on_policy_fraction: 1, on_policy_tokens: 4}", other_teacher)
    torch.manual_seed(7 << 40)
    examples, shares = learner._shares(rows)
    recorded = sum(row.positions for row in rows)
    assert [row.label.completion for row in examples[:5]] == [row.label.completion for row in rows]
    assert shares.words.tolist() == [0.75] * recorded + [0.0] * (len(shares.words) - recorded)
    assert shares.at.tolist() == list(range(recorded, len(shares.words)))
    assert float(shares.apart.sum()) == pytest.approx(0.25 * recorded)
    learner, rows = made("{weight: 1, on_policy_fraction: 1, on_policy_tokens: 4}", other_teacher)
    torch.manual_seed(7 << 40)
    examples, _ = learner._shares(rows)
    assert len(examples) == len(rows)  # nothing of the recorded ones is left, so they are not computed
