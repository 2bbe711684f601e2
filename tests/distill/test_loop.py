"""The loop: what is learnt does not depend on how a batch is cut up, on who computes it, or on being stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from white_runs import gradients

from edgestill.distill.student.bidirectional import EncoderLearner, TextRow
from edgestill.distill.student.causal import CausalLearner
from edgestill.distill.student.loop import Checkpoint, Learner, Training
from edgestill.distill.student.packing import Branch, Example
from edgestill.distill.student_section import TrainSection
from edgestill.runtime import manifest

WIDTH, LABELS = 12, 3
ALONE = [sys.executable]
IN_PAIRS = [str(Path(sys.executable).parent / "accelerate"), "launch"]  # --multi_gpu is torchrun; no GPU is needed
IN_PAIRS += ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
IN_PAIRS += ["--dynamo_backend", "no", "--main_process_port", "0"]


class Plain:
    """The smallest learner: a linear map with dropout, weighted cross-entropy, every other row with a reason."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.map = torch.nn.Linear(WIDTH, LABELS)
        self.dropout = torch.nn.Dropout(dropout)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.map.parameters())

    @property
    def rates(self) -> list[float]:
        return [1.0, 1.0]

    def tokens(self, row: int) -> int:
        return row % 5 + 1

    def mass(self, rows: Any) -> tuple[float, float]:
        return float(sum(1 + row % 3 for row in rows)), float(sum(row % 2 for row in rows))

    def loss(self, rows: Any, mass: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.stack([torch.sin(torch.arange(WIDTH) * (row + 1.0)) for row in rows])
        losses = -self.map(self.dropout(x)).log_softmax(-1)
        label = sum(losses[i, row % LABELS] * (1 + row % 3) for i, row in enumerate(rows)) / mass[0]
        reason = sum((losses[i, 0] * (row % 2) for i, row in enumerate(rows)), torch.tensor(0.0)) / max(mass[1], 1)
        return label + 0.3 * reason, torch.stack([label, reason]).detach()


def train(**fields: Any) -> TrainSection:
    return TrainSection(**{"epochs": 2.5, "learning_rate": 0.05, "batch_rows": 8, **fields})


def ended(learner: Plain, checkpoint: Checkpoint | None = None, **fields: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """((S, 2) losses, weights at the end) over 37 rows."""
    state = Training(learner, range(37), train(**fields), checkpoint).run()
    return torch.stack(state.losses), torch.cat([p.detach().reshape(-1) for p in learner.parameters])


@pytest.mark.parametrize("pass_rows", [1, 3, 8, 100])
def test_how_many_rows_go_through_at_a_time_does_not_change_what_is_learnt(pass_rows: int) -> None:
    losses, weights = ended(Plain(), pass_rows=pass_rows)
    wanted_losses, wanted = ended(Plain())
    torch.testing.assert_close(losses, wanted_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, wanted, rtol=1e-4, atol=1e-6)


def test_a_batch_without_reasons_says_so_and_an_epoch_and_a_half_is_that_many_batches() -> None:
    losses, _ = ended(Plain(), batch_rows=1, epochs=0.5)
    assert len(losses) == 18  # half of 37
    assert losses[:, 1].isnan().any()
    assert not losses[:, 1].isnan().all()
    assert not losses[:, 0].isnan().any()


def test_a_stopped_training_ends_with_the_same_weights_to_the_last_bit(tmp_path: Path) -> None:
    wanted_losses, wanted = ended(Plain(dropout=0.2))
    tokens = [sum(Plain().tokens(row) for row in batch) for batch in Training(Plain(), range(37), train()).batches]
    for stop in (1, 5, 11):
        checkpoint = Checkpoint(tmp_path / f"{stop}.pt", "same", every_s=0.0)
        until = sum(tokens[: stop + 1])

        def stopped(done: int, _: int, until: int = until) -> None:
            if done == until:
                raise KeyboardInterrupt  # after the step, before its checkpoint

        with pytest.raises(KeyboardInterrupt):
            Training(Plain(dropout=0.2), range(37), train(), checkpoint).run(stopped)
        learner = Plain(dropout=0.2)
        state = Training(learner, range(37), train(), checkpoint).run()
        assert state.resumed_at_step == stop
        assert torch.equal(torch.stack(state.losses).nan_to_num(-1), wanted_losses.nan_to_num(-1))
        assert torch.equal(torch.cat([p.detach().reshape(-1) for p in learner.parameters]), wanted)


def test_a_checkpoint_of_other_inputs_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    ended(Plain(), Checkpoint(path, "theirs", every_s=0.0))
    assert path.exists()
    state = Training(Plain(), range(37), train(), Checkpoint(path, "ours", every_s=1e9)).run()
    assert state.resumed_at_step is None


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("pass_rows", [None, 2])
def test_one_batch_has_the_gradients_of_rows_computed_alone(
    tiny_learners: dict[str, tuple[Learner[Any], list[Any]]], kind: str, pass_rows: int | None
) -> None:
    """Rows alone need no padding and no packing: the plain implementation."""
    learner, rows = tiny_learners[kind]
    loss, found = gradients(learner, rows, pass_rows or len(rows))
    wanted_loss, wanted = gradients(learner, rows, 1)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    largest = float(wanted.abs().max())
    assert largest > 1e-4
    assert float((found - wanted).abs().max()) < 1e-5 * largest


@pytest.fixture(scope="module")
def tiny_learners(tiny_recipes: dict[str, Path]) -> dict[str, tuple[Learner[Any], list[Any]]]:
    """A decoder and an encoder in float32 without dropout, each with five rows of different lengths and weights."""
    from edgestill.distill.plan import make_plan

    found: dict[str, tuple[Learner[Any], list[Any]]] = {}
    for kind, make in (("causal", CausalLearner), ("encoder", EncoderLearner)):
        plan = make_plan(tiny_recipes[kind]).students[0]
        torch.manual_seed(0)
        learner: Any = make(plan.recipe, plan.base, plan.task, plan.tokenizer)
        learner.model.eval()
        with torch.no_grad():
            for parameter in learner.parameters:  # LoRA starts at zero, where half of its gradients vanish
                parameter.add_(torch.randn_like(parameter) * 0.02)
        found[kind] = learner, _rows(kind)
    return found


def _rows(kind: str) -> list[Any]:
    spread = [tuple((7 * i + 3 * j) % 900 + 100 for j in range(2 + 2 * i)) for i in range(5)]
    if kind == "encoder":
        return [TextRow((101, *ids, 102), (0.7, 0.3) if i % 2 else (0.0, 1.0), 1.0 + i) for i, ids in enumerate(spread)]
    rows = []
    for i, ids in enumerate(spread):
        reason = None if i == 2 else Branch((*ids, 11, 12), tuple(range(40, 43 + i)))
        rows.append(Example(Branch((*ids, 11), (20 + i, 2)), reason, weight=1.0 + i))
    return rows


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_killed_training_goes_on_and_saves_the_same_bytes(
    tiny_recipes: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    whole = _trained(tiny_recipes[kind], tmp_path / "whole", 1e9)
    wanted = _weights(tmp_path / "whole")
    process = _start(tiny_recipes[kind], tmp_path / "killed", 0.0)
    while not (tmp_path / "killed" / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    again = _trained(tiny_recipes[kind], tmp_path / "killed", 1e9)
    assert again["resumed_at_step"] is not None
    assert whole["resumed_at_step"] is None
    assert _weights(tmp_path / "killed") == wanted
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_two_processes_learn_what_one_learns_with_twice_the_passes(
    tiny_recipes: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    losses = {}
    for name, command, pass_rows in (("two", IN_PAIRS, 0), ("one", ALONE, 4)):
        out = tmp_path / name
        _run(command, tiny_recipes[kind], out, pass_rows)
        losses[name] = torch.tensor([line["label_nats"] for line in manifest.read_jsonl(out / "losses.jsonl")])
        assert json.loads((out / "training.json").read_text(encoding="utf-8"))["processes"] == (
            2 if name == "two" else 1
        )
    assert losses["one"].shape == losses["two"].shape
    torch.testing.assert_close(losses["two"], losses["one"], rtol=2e-4, atol=1e-5)
    assert losses["one"][-1] < losses["one"][0]


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_two_processes_put_a_student_on_the_grid_as_one_does(
    kind: str, tiny_recipes: dict[str, Path], tmp_path: Path
) -> None:
    _trained(tiny_recipes[kind], tmp_path / "one", 1e9)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name, command in (("one", ALONE), ("two", IN_PAIRS)):
        _run(command, tiny_recipes[kind], tmp_path / name)
    one, two = (load_file(tmp_path / name / "grid" / "grid.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    learnt = 0
    for name, value in one.items():
        if name.endswith((".codes", ".scales")):
            assert torch.equal(value, two[name])  # both processes round alike
        else:
            torch.testing.assert_close(two[name], value, rtol=2e-3, atol=1e-4)
            learnt += 1
    assert learnt
    assert not (tmp_path / "two" / "grid" / "checkpoint.pt").exists()


def _arguments(recipe: Path, out: Path, checkpoint_s: float, pass_rows: int = 0) -> list[str]:
    return [str(Path(__file__).parent / "train_once.py"), str(recipe), str(out), str(checkpoint_s), str(pass_rows)]


def _run(command: list[str], recipe: Path, out: Path, pass_rows: int = 0) -> None:
    """One run of the program to its end, with `command` before it."""
    done = subprocess.run(
        [*command, *_arguments(recipe, out, 1e9, pass_rows)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _start(recipe: Path, out: Path, checkpoint_s: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *_arguments(recipe, out, checkpoint_s)])


def _trained(recipe: Path, out: Path, checkpoint_s: float) -> dict[str, Any]:
    with _start(recipe, out, checkpoint_s) as process:
        assert process.wait() == 0
    return dict(json.loads((out / "training.json").read_text(encoding="utf-8")))


def _weights(folder: Path) -> bytes:
    return next(folder.glob("*.safetensors")).read_bytes()
