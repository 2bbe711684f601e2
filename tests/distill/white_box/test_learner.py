"""A learner and its teacher: nothing to learn from itself, the right tokens paired, the same sums however cut up."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from white_runs import Made, gradients

from edgestill.distill.student.causal import CausalLearner
from edgestill.distill.student.objectives import label_rationale_loss
from edgestill.distill.student.packing import Branch, Example, pack
from edgestill.distill.white_box.divergences import forward_kl, reverse_kl
from edgestill.distill.white_box.teacher import Paired

KINDS = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", ["64", "all"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    made: Callable[..., Made], tmp_path: Path, kind: str, top_k: str
) -> None:
    learner, rows = made(f"{{divergence: {kind}, weight: 1, top_k: {top_k}, temperature: 2}}", shake=0.0)
    rows = learner.ask_teacher(rows, tmp_path / "logits")
    loss, found = gradients(learner, rows, 5)
    assert abs(loss) < 1e-5
    assert found.abs().max() < 1e-4
    learner, rows = made(f"{{divergence: {kind}, weight: 1, top_k: {top_k}, temperature: 2}}", shake=0.05)
    loss, found = gradients(learner, rows, 5)  # and once it is another, it has
    assert loss > 1e-4
    assert found.abs().max() > 1e-4


def test_it_is_the_mean_divergence_of_each_task_computed_row_by_row_without_packing(
    made: Callable[..., Made], other_teacher: Path
) -> None:
    learner, rows = made("{weight: 1, top_k: all}", other_teacher)
    loss, _ = gradients(learner, rows, 5)
    sums = {0: [0.0, 0.0], 1: [0.0, 0.0]}
    with torch.no_grad():
        for row in rows:
            for task, branch in enumerate(row.branches):
                theirs = row.for_teacher().branches[task]
                log_p, log_q = (
                    alone(rows_of, one, learner.vocabulary).log_softmax(-1)
                    for rows_of, one in ((learner.teacher.rows, theirs), (learner, branch))
                )
                weights = torch.tensor(branch.answer_shares) * row.weight if task == 0 else torch.ones(len(log_p))
                sums[task][0] += float((forward_kl(log_p, log_q)[0] * weights).sum())
                sums[task][1] += float(weights.sum())
    wanted = 0.5 * sums[0][0] / sums[0][1] + 0.5 * sums[1][0] / sums[1][1]
    assert loss == pytest.approx(wanted, rel=1e-4)


def alone(rows: Any, branch: Branch, vocabulary: int) -> torch.Tensor:
    """Logits (n, V) of one branch by itself."""
    packed = pack([Example(branch, None)])
    return (rows.hidden(packed) @ rows.head.t()).float()[:, :vocabulary]


def test_the_ith_token_of_the_answer_is_compared_with_the_ith_behind_a_longer_prompt(
    made: Callable[..., Made],
) -> None:
    """One model, two prompts. What pairs positions of the whole sequences, as published code did, sees other words."""
    learner, rows = made("{divergence: reverse_kl, weight: 1, top_k: all}", shake=0.0, priming="teacher")
    row = rows[1]
    prompt, completion = row.label.prompt, row.label.completion
    assert len(row.prompts[0]) > len(prompt) + 5
    assert row.prompts[0][-3:] == prompt[-3:]  # the question and the suffix follow the prime
    with torch.no_grad():
        ours, theirs = (
            learner.teacher.rows.causal.model(
                input_ids=(packed := pack([Example(Branch(before, completion), None)])).ids,
                position_ids=packed.positions,
                blocks=packed.blocks,
            ).last_hidden_state[0]
            @ learner.head.t()
            for before in (prompt, row.prompts[0])
        )
        count = len(completion)
        by_answer = reverse_kl(
            *(z[len(before) - 1 :][:count].log_softmax(-1) for z, before in ((theirs, row.prompts[0]), (ours, prompt)))
        )[0]
        by_place = reverse_kl(*(z[len(prompt) - 1 :][:count].log_softmax(-1) for z in (theirs, ours)))[0]
    only = dataclasses.replace(row, rationale=None, prompts=row.prompts[:1], weight=1.0)
    found, _ = gradients(learner, [only], 1)
    weights = torch.tensor(row.label.answer_shares) / count
    assert found == pytest.approx(float((by_answer * weights).sum()), rel=1e-4)
    assert found != pytest.approx(float((by_place * weights).sum()), rel=0.05)


MIXES = [
    "{weight: 0.4}",
    "{weight: 1, divergence: skew_kl, top_k: all}",
    "{weight: 0.5, divergence: jsd, on_policy_fraction: 0.5, on_policy_tokens: 6}",
    "{weight: 1, divergence: reverse_kl, on_policy_fraction: 1, on_policy_tokens: 6}",
    "{weight: 0.5, features: {weight: 0.3}}",
]


@pytest.mark.parametrize("white_box", MIXES)
def test_the_gradient_of_a_batch_does_not_depend_on_how_it_is_cut_up(
    made: Callable[..., Made], other_teacher: Path, tmp_path: Path, white_box: str
) -> None:
    learner, rows = made(white_box, other_teacher)
    rows = learner.ask_teacher(rows, tmp_path / "logits")
    loss, wanted = gradients(learner, rows, 5)
    for size in (1, 2):
        again, found = gradients(learner, rows, size)
        assert again == pytest.approx(loss, rel=1e-5)
        assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert float(wanted.abs().max()) > 1e-4
    if "on_policy" in white_box:
        other, _ = gradients(learner, rows, 5, step=4)
        assert other != pytest.approx(loss, rel=1e-6)  # another step, other samples


def test_the_weight_mixes_the_usual_loss_with_the_divergence(made: Callable[..., Made], other_teacher: Path) -> None:
    learner, rows = made("{weight: 1, top_k: all}", other_teacher)
    apart, _ = gradients(learner, rows, 5)
    plain, _ = CausalLearner.loss(learner, rows, learner.mass(rows))
    learner, rows = made("{weight: 0.25, top_k: all}", other_teacher)
    loss, _ = gradients(learner, rows, 5)
    assert loss == pytest.approx(0.75 * plain.item() + 0.25 * apart, rel=1e-5)
    _, parts = learner.loss(rows, learner.mass(rows))
    assert loss == pytest.approx(float(0.5 * parts[0] + 0.5 * parts[1]), rel=1e-5)


def test_other_rows_of_the_pass_and_the_teachers_padded_logits_do_not_count(
    made: Callable[..., Made], other_teacher: Path
) -> None:
    learner, rows = made("{weight: 1, top_k: all}", other_teacher)
    loss, wanted = gradients(learner, rows, 5)
    assert learner.teacher.rows.head.shape[0] > learner.vocabulary
    with torch.no_grad():
        learner.teacher.rows.causal.lm_head.weight[learner.vocabulary :] += 50.0
    again, found = gradients(learner, rows, 5)
    assert (again, float((found - wanted).abs().max())) == (loss, 0.0)
    one = learner.loss(rows[:1], learner.mass(rows[:1]))[0].item()
    longer = dataclasses.replace(rows[1], weight=0.0, rationale=None, prompts=rows[1].prompts[:1])
    both = learner.loss([rows[0], longer], learner.mass([rows[0], longer]))[0].item()
    assert both == pytest.approx(one, rel=1e-5)


def test_stored_distributions_give_the_loss_of_a_teacher_that_is_asked_anew(
    made: Callable[..., Made], other_teacher: Path, tmp_path: Path
) -> None:
    learner, rows = made("{weight: 1, top_k: 16}", other_teacher)
    live, wanted = gradients(learner, rows, 2)
    stored = learner.ask_teacher(rows, tmp_path / "logits")
    assert learner._teacher is None  # its memory is free
    kept, found = gradients(learner, stored, 2)
    assert learner._teacher is None
    assert kept == pytest.approx(live, rel=1e-6)
    assert torch.allclose(found, wanted, atol=1e-6)
    whole, _ = gradients(*made("{weight: 1, top_k: all}", other_teacher), 2)
    assert 0 < kept < whole  # a lower bound


def test_features_pull_the_students_states_towards_the_teachers_through_the_projection(
    made: Callable[..., Made], other_teacher: Path, tmp_path: Path
) -> None:
    learner, rows = made("{weight: 1, features: {weight: 0.5, pairs: 2}}", other_teacher)
    assert learner.features is not None
    assert [tuple(p.shape) for p in learner.features.projections] == [(96, 64), (96, 64)]
    loss, _ = gradients(learner, rows, 5)
    bare, _ = gradients(*made("{weight: 1}", other_teacher), 5)
    packed = pack(rows)
    with torch.no_grad():
        found = learner.causal.model(
            input_ids=packed.ids, position_ids=packed.positions, blocks=packed.blocks, output_hidden_states=True
        ).hidden_states
        _, theirs = learner.teacher.states([row.for_teacher() for row in rows], [2, 3])
        states = [found[layer][0, packed.sources] for layer in (1, 2)]
        far = sum(
            (h @ w.t() - t).square().sum(-1) / t.square().sum(-1)
            for h, w, t in zip(states, learner.features.projections, theirs, strict=True)
        )
        wanted = label_rationale_loss(far, packed, 0.5, learner.mass(rows))[0]
    assert loss - bare == pytest.approx(0.5 * wanted.item(), rel=1e-3)
    learner.save(tmp_path / "adapter")
    from safetensors.torch import load_file

    assert all("lora" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))


def test_a_student_as_wide_as_its_teacher_needs_no_projection_and_is_at_no_distance_from_itself(
    made: Callable[..., Made],
) -> None:
    learner, rows = made("{weight: 1, features: {weight: 0.5}}", shake=0.0)
    assert learner.features is not None
    assert not list(learner.features.parameters())
    assert learner.features.of_student == learner.features.of_teacher == [1, 2]
    loss, _ = gradients(learner, rows, 5)
    assert abs(loss) < 1e-5


def test_a_row_is_a_plain_example_for_everybody_else(made: Callable[..., Made]) -> None:
    learner, rows = made("{weight: 0.5}")
    assert all(isinstance(row, Paired) and isinstance(row, Example) for row in rows)
    weighted = dataclasses.replace(rows[0], weight=3.0)
    assert isinstance(weighted, Paired)
    assert learner.tokens(weighted) == learner.tokens(rows[0])
    assert learner.answers(["a frog"])[0] in ("red", "green")
