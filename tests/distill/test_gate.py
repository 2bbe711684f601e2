"""Gated training: what a gate lets through is learnt as a plain loop would, cut up or stopped or shared or not."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgestill.distill.dataset import Row, row_id
from edgestill.distill.plan import make_plan
from edgestill.distill.select.llkd import LLKD
from edgestill.distill.select.selection import Selection
from edgestill.distill.student.gate import Gate, GatedRows
from edgestill.distill.student.loop import FINAL_RATE_SHARE, MAX_GRADIENT_NORM, WARMUP_SHARE, Checkpoint, Training
from edgestill.distill.student.train import USED_ROWS_NAME, train_learner, train_student
from edgestill.distill.student_section import TrainSection
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime import manifest
from tests.distill.test_loop import ALONE, IN_PAIRS, _run

LABELS = ("red", "green", "blue")
WIDTH = 6
ROWS = 37


@dataclasses.dataclass(frozen=True)
class Point:
    number: int
    weight: float = 1.0


class Plain:
    """The smallest student that a gate can look at: a linear map with dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.map, self.dropout = torch.nn.Linear(WIDTH, len(LABELS)), torch.nn.Dropout(dropout)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.map.parameters())

    @property
    def rates(self) -> list[float]:
        return [1.0, 1.0]

    def question(self, text: str) -> Point:
        return Point(int(text))

    def tokens(self, row: Point) -> int:
        return row.number % 5 + 1

    def features(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.stack([torch.sin(torch.arange(WIDTH) * (number + 1.0)) for number in numbers])

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        with torch.no_grad():
            return self.map(self.features([int(text) for text in texts])).softmax(-1).double().numpy()

    def mass(self, rows: Sequence[Point]) -> tuple[float, float]:
        return sum(row.weight for row in rows), 0.0

    def loss(self, rows: Sequence[Point], mass: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.map(self.dropout(self.features([row.number for row in rows])))
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor([row.number % len(LABELS) for row in rows]), reduction="none"
        )
        loss = (losses * torch.tensor([row.weight for row in rows])).sum() / mass[0]
        return loss, torch.stack([loss.detach(), torch.tensor(0.0)])


class Listed:
    """A gate that says what it was told to: the weights of each step, whatever the batch."""

    def __init__(self, steps: Sequence[Sequence[float]], labels: int = len(LABELS)) -> None:
        self.steps, self.step, self.labels = steps, 0, labels

    def check(self, answers: Sequence[Annotation]) -> None:
        """Anything goes."""

    def weights(self, answers: Sequence[Annotation], chances: NDArray[np.float64]) -> NDArray[np.float64]:
        assert chances.shape == (len(answers), self.labels)
        self.step += 1
        return np.array(self.steps[(self.step - 1) % len(self.steps)][: len(answers)], dtype=float)

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def facts(self) -> dict[str, Any]:
        return {}


def pair(number: int) -> tuple[Row, Annotation]:
    label, sure = LABELS[number % 3], 0.4 + 0.6 * ((number * 7) % 10) / 10
    odds = {name: sure if name == label else (1 - sure) / 2 for name in LABELS}
    text = str(number)
    return Row(row_id(text), text, None, "train"), Annotation(row_id(text), label, odds, None, 1, 1, None, "")


PAIRS = [pair(number) for number in range(ROWS)]
SOME = [[1, 0, 2, 0, 0, 0.5, 1, 1.5], [0] * 8, [0, 0, 0, 0, 3, 0, 0, 0], [1] * 8]


def section(**fields: Any) -> TrainSection:
    return TrainSection(**{"epochs": 2.5, "learning_rate": 0.05, "batch_rows": 8, **fields})


def gated(
    gate: Gate, learner: Plain, checkpoint: Checkpoint | None = None, **fields: Any
) -> tuple[Training[Any], GatedRows]:
    sieve = GatedRows(gate, learner, [Point(number) for number in range(ROWS)], PAIRS)
    return Training(learner, range(ROWS), section(**fields), checkpoint, sieve=sieve), sieve


def end(learner: Plain) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in learner.parameters])


def test_a_gate_that_lets_all_through_learns_the_same_bits_as_no_gate() -> None:
    with_gate, without = Plain(dropout=0.3), Plain(dropout=0.3)
    loop, sieve = gated(Listed([[1] * 8]), with_gate)
    one = loop.run()
    other = Training(without, [Point(number) for number in range(ROWS)], section()).run()
    assert torch.equal(torch.stack(one.losses).nan_to_num(-1), torch.stack(other.losses).nan_to_num(-1))
    assert torch.equal(end(with_gate), end(without))
    assert (one.tokens, one.drawn_tokens) == (other.tokens, other.drawn_tokens)
    assert sieve.facts()["forward_tokens"] == one.tokens
    assert sieve.facts()["share_used"] == 1.0


@pytest.mark.parametrize("pass_rows", [None, 1, 3])
def test_what_is_let_through_is_learnt_as_a_plain_loop_over_it_does(pass_rows: int | None) -> None:
    learner, plain = Plain(), Plain()
    loop, sieve = gated(Listed(SOME), learner, pass_rows=pass_rows)
    state = loop.run()
    optimizer = torch.optim.AdamW(plain.parameters, lr=0.05, weight_decay=0.0)
    steps = len(loop.batches)
    for step, places in enumerate(loop.batches):
        weights = torch.tensor(SOME[step % len(SOME)][: len(places)], dtype=torch.float32)
        if weights.sum() == 0:
            assert state.losses[step].isnan().all()
            continue
        logits = plain.map(plain.features(places))
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(places) % len(LABELS), reduction="none")
        loss = (weights * losses).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters, MAX_GRADIENT_NORM)
        warmup = min(1.0, (step + 1) / max(1.0, WARMUP_SHARE * steps))
        optimizer.param_groups[0]["lr"] = 0.05 * warmup * max(FINAL_RATE_SHARE, 1 - step / steps)
        optimizer.step()
        assert state.losses[step][0].item() == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(end(learner), end(plain), rtol=1e-4, atol=1e-6)
    assert sieve.facts()["empty_steps"] == sum(step % 4 == 1 for step in range(steps))


def test_only_selected_rows_are_computed_and_the_account_says_which() -> None:
    learner = Plain()
    loop, sieve = gated(Listed(SOME), learner)
    state = loop.run()
    chosen = [
        [place for place, weight in zip(places, SOME[step % 4], strict=False) if weight]
        for step, places in enumerate(loop.batches)
    ]
    used = {place for places in chosen for place in places}
    assert state.tokens == sum(place % 5 + 1 for places in chosen for place in places)
    facts = sieve.facts()
    assert state.tokens < state.drawn_tokens == facts["forward_tokens"]
    assert sieve.account.selected == [len(places) for places in chosen]
    assert facts["rows_used"] == len(used) < ROWS
    assert facts["share_used"] == len(used) / ROWS
    assert facts["rows_used_by_label"] == {label: sum(LABELS[p % 3] == label for p in used) for label in LABELS}
    lines = list(sieve.used_rows())
    assert [line["id"] for line in lines] == [row_id(str(place)) for place in sorted(used)]
    for line in lines:
        steps = [step for step, places in enumerate(chosen) if line["id"] in {row_id(str(p)) for p in places}]
        assert (line["first_step"], line["steps"]) == (steps[0], len(steps))


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_stopped_gated_training_ends_with_the_same_weights_to_the_last_bit(tmp_path: Path, stop: int) -> None:
    whole = Plain(dropout=0.2)
    wanted_loop, wanted = gated(LLKD(decay=0.9).gate(LABELS), whole)
    losses = wanted_loop.run().losses
    selected = wanted.account.selected
    assert 0 < sum(selected[: stop + 1]) < sum(selected) < 0.9 * sum(map(len, wanted_loop.batches))
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "same", every_s=0.0)
    steps = []

    def stopped(_: int, __: int) -> None:
        steps.append(1)
        if len(steps) == stop + 1:
            raise KeyboardInterrupt  # after the step, before its checkpoint

    first, _ = gated(LLKD(decay=0.9).gate(LABELS), Plain(dropout=0.2), checkpoint)
    with pytest.raises(KeyboardInterrupt):
        first.run(stopped)
    learner = Plain(dropout=0.2)
    loop, sieve = gated(LLKD(decay=0.9).gate(LABELS), learner, checkpoint)
    state = loop.run()
    assert state.resumed_at_step == stop
    assert torch.equal(torch.stack(state.losses).nan_to_num(-1), torch.stack(losses).nan_to_num(-1))
    assert torch.equal(end(learner), end(whole))
    assert sieve.facts() == wanted.facts()
    assert list(sieve.used_rows()) == list(wanted.used_rows())


class Alike(Selection):
    """A strategy of a few lines: every row counts."""

    strategy: str = "alike"

    def gate(self, labels: Sequence[str]) -> Gate:
        return Listed([[1] * 8], len(labels))


def colours() -> list[tuple[Row, Annotation]]:
    found = []
    for i, (word, label) in enumerate([("tomato", "red"), ("grass", "green"), ("cherry", "red")] * 8):
        text, sure = f"the {word} number {i}", 0.55 + 0.4 * (i % 5) / 4
        odds = {name: sure if name == label else 1 - sure for name in ("red", "green")}
        said = Annotation(row_id(text), label, odds, f"{label} it is", 1, 1, None, "")
        found.append((Row(row_id(text), text, None, "train"), said))
    return found


def tiny(recipe: Path, select: Selection) -> tuple[Any, ...]:
    plan = make_plan(recipe).students[0]
    return plan.recipe.model_copy(update={"select": select}), plan.base, plan.task, plan.tokenizer


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_real_student_behind_a_gate_of_ones_is_the_one_without(tiny_recipes: dict[str, Path], kind: str) -> None:
    """The encoder has dropout: looking at the student in between changes nothing."""
    ends = []
    for select in (Alike(), make_plan(tiny_recipes[kind]).recipe.select):
        learner, _, state = train_learner(*tiny(tiny_recipes[kind], select), colours())
        ends.append((torch.stack(state.losses), [p.detach().clone() for p in learner.parameters]))
    assert torch.equal(ends[0][0].nan_to_num(-1), ends[1][0].nan_to_num(-1))
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_real_student_learns_from_part_of_the_rows_and_says_which(
    tiny_recipes: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    pairs = colours()
    facts = train_student(*tiny(tiny_recipes[kind], LLKD(decay=0.8)), pairs, pairs[:4], tmp_path / "student", "0f")
    assert facts.gate is not None
    assert 0 < facts.gate["rows_used"] < len(pairs)
    assert facts.gate["selected_per_step"] < 8
    used = {line["id"]: line for line in manifest.read_jsonl(tmp_path / "student" / USED_ROWS_NAME)}
    assert len(used) == facts.gate["rows_used"]
    assert set(used) < {row.id for row, _ in pairs}
    steps = list(manifest.read_jsonl(tmp_path / "student" / "losses.jsonl"))
    assert [step["label_nats"] is None for step in steps] == [step["rows"] == 0 for step in steps]
    assert sum(step["rows"] for step in steps) == sum(line["steps"] for line in used.values())
    written = json.loads((tmp_path / "student" / "training.json").read_text(encoding="utf-8"))
    assert written["gate"] == facts.gate
    assert facts.computed_tokens < facts.gate["forward_tokens"] or kind == "causal"  # reasons are not asked about


def test_a_real_gated_training_that_was_stopped_saves_the_same_bytes(
    tiny_recipes: dict[str, Path], tmp_path: Path
) -> None:
    pairs = colours()
    parts = tiny(tiny_recipes["encoder"], LLKD(decay=0.8))
    whole = train_student(*parts, pairs, pairs[:4], tmp_path / "whole", "0f")

    def stopped(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(*parts, pairs, pairs[:4], tmp_path / "cut", "0f", stopped, checkpoint_s=0.0)
    again = train_student(*parts, pairs, pairs[:4], tmp_path / "cut", "0f")
    assert again.resumed_at_step is not None
    assert again.gate == whole.gate
    for name in ("model.safetensors", USED_ROWS_NAME, "losses.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_processes_decide_and_learn_what_one_does(tiny_recipes: dict[str, Path], tmp_path: Path) -> None:
    text = tiny_recipes["encoder"].read_text(encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text + "select: {strategy: student_uncertainty, decay: 0.8}\n", encoding="utf-8")
    found = {}
    for name, command in (("two", IN_PAIRS), ("one", ALONE)):
        _run(command, recipe, tmp_path / name, pass_rows=1)  # a pass is what dropout is seeded by
        found[name] = list(manifest.read_jsonl(tmp_path / name / "losses.jsonl"))
    assert [line["rows"] for line in found["two"]] == [line["rows"] for line in found["one"]]
    assert 0 < sum(line["rows"] for line in found["one"]) < 40 * 3
    assert list(manifest.read_jsonl(tmp_path / "two" / USED_ROWS_NAME)) == list(
        manifest.read_jsonl(tmp_path / "one" / USED_ROWS_NAME)
    )
    losses = [torch.tensor([line["label_nats"] or 0.0 for line in found[name]]) for name in ("two", "one")]
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-4, atol=1e-5)


def test_a_student_of_no_rows_is_as_it_starts_out(tiny_recipes: dict[str, Path]) -> None:
    learner, _, state = train_learner(*tiny(tiny_recipes["encoder"], LLKD()), [])
    assert state.losses == []
    assert learner.probabilities(["a red door"]).shape == (1, 2)
