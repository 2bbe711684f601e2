"""Training on a tiny true model: it learns what the teacher says, from the device's own prompt, the same way twice."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from edgestill.distill.base import Base, prepare_base
from edgestill.distill.dataset import Row, row_id
from edgestill.distill.labels import build_task
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.causal import CausalLearner, load_causal, make_example
from edgestill.distill.student.train import FACTS_NAME, Pair, Training, train_learner, train_student, weight_of_labels
from edgestill.distill.teacher.protocol import Annotation
from edgestill.distill.torch_session import TorchSession
from edgestill.runtime import decode, manifest
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.task import Task, load_tokenizer

THINGS = ["tomato", "grass", "frog", "cherry", "lime", "moss", "blood", "ruby", "lamp", "door", "cup", "sea"]


@dataclass(frozen=True)
class Bench:
    recipe: Recipe
    base: Base
    task: Task
    tokenizer: Any

    def pairs(self, texts: list[str], label: str) -> list[Pair]:
        return [
            (Row(row_id(text), text, None, "train"), Annotation(row_id(text), label, None, "it is so", 1, 1, None, ""))
            for text in texts
        ]

    def train(self, label: str, folder: Path) -> Training:
        pairs = self.pairs([f"the {thing} over there" for thing in THINGS], label)
        return train_student(
            self.recipe, self.base, self.task, self.tokenizer, pairs, self.pairs(["a sea of cups"], label), folder, "0f"
        )

    def answers(self, model: Any) -> dict[str, torch.Tensor]:
        """Probabilities over the labels for texts that were not trained on, decoded as on the device."""
        session, ids = TorchSession(model, 128), [label.token_id for label in self.task.labels]
        return {
            text: torch.tensor(decode.label_probabilities(session.logits(self.task.encode(self.tokenizer, text)), ids))
            for text in ("one more cherry", "is this a door?", "Nothing to see here.")
        }


def a_bench(tiny_base: Path, labels: Sequence[str] = ("red", "green", "blue"), **train: Any) -> Bench:
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "task": {"instruction": "Which colour?", "labels": list(labels)},
            "data": {"pool": "pool.jsonl"},
            "teacher": {"kind": "replay", "path": "teacher.jsonl"},
            "student": {"base": str(tiny_base), "lora": {"r": 8, "alpha": 32}},
            "train": {"epochs": 4, "learning_rate": 0.03, "batch_rows": 4, **train},
        }
    )
    base = prepare_base(str(tiny_base))
    tokenizer = load_tokenizer(tiny_base)
    return Bench(recipe, base, build_task(recipe, base, tokenizer), tokenizer)


@pytest.fixture(scope="module")
def bench(tiny_base: Path) -> Bench:
    return a_bench(tiny_base)


def test_a_teacher_that_always_says_the_same_makes_a_student_that_does(bench: Bench, tmp_path: Path) -> None:
    from peft import PeftModel

    before = bench.answers(load_causal(bench.base, torch.float32))
    least = int(sum(before.values()).argmin())  # what the untrained base would say last
    label = bench.task.labels[least].name
    facts = bench.train(label, tmp_path / "adapter")
    causal = load_causal(bench.base, torch.float32)
    model = PeftModel.from_pretrained(causal, str(tmp_path / "adapter")).merge_and_unload()
    after = bench.answers(model)
    assert all(chances[least] < 0.5 for chances in before.values())
    assert all(chances[least] > 0.9 for chances in after.values())
    assert facts.dev_agreement == 1.0
    assert manifest.load(Training, tmp_path / "adapter" / FACTS_NAME) == facts
    assert (facts.rows, facts.steps, facts.dev_rows, facts.inputs_sha256) == (12, 12, 1, "0f")
    assert facts.rationale_loss_nats is not None


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(tiny_base: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        a_bench(tiny_base, epochs=0.7, seed=seed).train("red", tmp_path / name)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "again", "other")]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_half_an_epoch_is_half_of_its_batches_and_labels_alone_have_no_rationale_loss(
    tiny_base: Path, tmp_path: Path
) -> None:
    facts = a_bench(tiny_base, epochs=0.5, batch_rows=2, objective="label").train("red", tmp_path / "adapter")
    assert (facts.steps, facts.epochs, facts.rationale_loss_nats) == (3, 0.5, None)


@pytest.mark.parametrize("rule", ["cut_tail", "cut_head"])
def test_training_and_device_use_the_same_prompt_ids(bench: Bench, rule: str) -> None:
    rng = random.Random(0)
    words = [*THINGS, "don't", "2026", "😀", "你好", "\n", "{text}", "<|im_end|>"]
    task = Task(**{**vars(bench.task), "max_text_tokens": 12, "too_long": rule})
    for _ in range(50):
        text = task.fill(" ".join(rng.choices(words, k=rng.randint(1, 20))) + " end")
        ((_, annotation),) = bench.pairs([text], "green")
        example = make_example(task, bench.tokenizer, text, annotation)
        assert example.label.prompt == tuple(task.encode(bench.tokenizer, text))
        assert example.rationale is not None
        assert example.rationale.prompt == tuple(task.encode(bench.tokenizer, text, task.rationale_suffix))
        assert example.label.completion[0] == task.labels[task.index("green")].token_id


def test_completions_are_the_answer_and_the_reason_with_the_end_of_sequence(bench: Bench) -> None:
    ((_, annotation),) = bench.pairs(["moss"], "green")
    example = make_example(bench.task, bench.tokenizer, "moss", annotation)
    assert example.rationale is not None
    written = [bench.tokenizer.decode(branch.completion[:-1]) for branch in example.branches]
    assert written == [" green", " it is so"]
    assert {branch.completion[-1] for branch in example.branches} == {bench.task.eos_token_id}


def test_probabilities_of_the_teacher_become_a_target_over_the_labels_answer_tokens(tiny_base: Path) -> None:
    bench = a_bench(tiny_base, soft_labels=True, label_smoothing=0.1)
    ((_, annotation),) = bench.pairs(["moss"], "green")
    sure = dataclasses.replace(annotation, probabilities={"red": 0.25, "green": 0.75})
    example = make_example(bench.task, bench.tokenizer, "moss", sure, bench.recipe.train, weight=2.0)
    tokens = {label.name: label.token_id for label in bench.task.labels}
    assert example.soft is not None
    rest = 0.1 / 3
    wanted = {tokens["red"]: 0.225 + rest, tokens["green"]: 0.675 + rest, tokens["blue"]: rest}
    assert dict(example.soft) == pytest.approx(wanted)
    assert example.weight == 2.0
    plain = make_example(bench.task, bench.tokenizer, "moss", annotation, bench.recipe.train)
    assert dict(plain.soft or ())[tokens["green"]] == pytest.approx(0.9 + rest)


def test_balanced_classes_weigh_the_same_though_one_has_a_longer_name(tiny_base: Path) -> None:
    bench = a_bench(tiny_base, ["red", "green and green"], class_weights="balanced")
    short, long = bench.pairs(["moss", "lime", "frog"], "red"), bench.pairs(["cherry"], "green and green")
    learner = CausalLearner(bench.recipe, bench.base, bench.task, bench.tokenizer)
    weights = weight_of_labels(learner, [*short, *long])
    masses = [
        sum(learner.mass([learner.prepare(row.text, answer, weights[answer.label])])[0] for row, answer in pairs)
        for pairs in (short, long)
    ]
    assert masses[0] == pytest.approx(masses[1])
    trained = train_learner(bench.recipe, bench.base, bench.task, bench.tokenizer, [*short, *long])[1]
    assert {row.weight for batch in trained.batches for row in batch} == set(weights.values())


def test_probabilities_that_no_answer_has_are_missed_before_anything_is_loaded(tiny_base: Path) -> None:
    bench = a_bench(tiny_base, soft_labels=True)
    with pytest.raises(EdgestillError, match=r"soft_labels wants the teacher's probabilities, and none of 1 answers"):
        train_learner(bench.recipe, bench.base, bench.task, bench.tokenizer, bench.pairs(["moss"], "green"))
