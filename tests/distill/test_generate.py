"""Tasks that generate, in distill: what a recipe may ask, how a teacher is read, what is learnt and written."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scripted_server import Answer, Call, ScriptedServer

from edgestill.distill.base import prepare_base
from edgestill.distill.dataset import Row, load_dataset, row_id
from edgestill.distill.labels import build_task
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.distill.student.causal import CausalLearner, make_example
from edgestill.distill.student.objectives import label_rationale_loss
from edgestill.distill.student.packing import Branch, Example, pack
from edgestill.distill.student.train import train_learner
from edgestill.distill.teacher.forms import form_of
from edgestill.distill.teacher.local import LocalEndpoint
from edgestill.distill.teacher.local_model import TransformersModel
from edgestill.distill.teacher.prompt import Prompter, first_dialect
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.distill.teacher.replay import ReplayTeacher
from edgestill.distill.torch_session import TorchSession
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import load_tokenizer
from edgestill.runtime.written import write_answer


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    """A recipe of numbers; a change is a section's keys."""
    sections: dict[str, dict[str, Any]] = {
        "task": {"kind": "generate", "instruction": "How many?", "match": "number"},
        "data": {"pool": "pool.jsonl", "gold": "gold"},
        "teacher": {"kind": "replay", "path": "teacher.jsonl"},
        "student": {},
        "train": {},
        "export": {},
    }
    made = {name: section | changes.get(name, {}) for name, section in sections.items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "sums", **made}), encoding="utf-8")
    return read_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("section", "keys", "words"),
    [
        ("task", {"labels": ["a", "b"]}, "task.labels: the labels are none of kind generate; take this key away"),
        ("task", {"answer_pattern": "(a"}, "'\\(a' is no regular expression"),
        ("task", {"answer_pattern": "(a)(b)"}, "has 2 groups, wanted at most one"),
        ("task", {"match": "fuzzy"}, "task.match"),
        ("task", {"none": "nothing"}, "none: 'nothing' names a label, and this task names none"),
        ("task", {"answer": "path"}, "answer: path is about labels"),
        ("task", {"choices": "options"}, "choices is for kind classify, found kind generate"),
        ("task", {"kind": "classify", "labels": ["a", "b"]}, "match is for kind generate, found kind classify"),
        ("student", {"kind": "encoder"}, "is an encoder, which labels and does not write; write kind: causal"),
        ("teacher", {"votes": 3}, "teacher.votes is 3: .*; write votes: 0"),
        ("train", {"soft_labels": True}, "train.soft_labels true is about labels; write soft_labels: false"),
        ("train", {"label_smoothing": 0.1}, "train.label_smoothing 0.1 is about labels"),
        ("student", {"train": {"class_weights": "sqrt"}}, "train.class_weights sqrt is about labels"),
        ("export", {"specialise": True}, "export.specialise is true: there are no labels"),
    ],
)
def test_what_a_written_answer_cannot_have_is_refused_in_one_line(
    tmp_path: Path, section: str, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        recipe_in(tmp_path, **{section: keys})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"kind": "classify", "match": "exact", "labels": ["a", "b"]}, "chain, which is for kind generate"),
        ({"rationale": False}, "chain, but task.rationale is false"),
    ],
)
def test_a_chain_is_for_answers_that_are_written_after_a_reason(
    tmp_path: Path, task: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        recipe_in(tmp_path, task=task, train={"objective": "chain"})
    assert recipe_in(tmp_path, train={"objective": "chain"}).train.objective == "chain"


@pytest.mark.parametrize(
    ("task", "value", "answer"),
    [
        ({}, 42.0, "42"),
        ({}, "1,234.50 USD", "1234.5"),
        ({"answer_pattern": r"#### (\S+)|(?<![\d.])(?:-?\d+)$"}, "48 / 2 = 24\n#### 72", None),
        ({"answer_pattern": r"-?\d[\d,]*"}, "48 / 2 = 24\n#### 72", "72"),
        ({"match": "exact"}, "  The Eiffel  Tower.", "the eiffel tower"),
        ({}, "none at all", None),
        ({}, True, None),
        ({}, [42], None),
    ],
)
def test_an_answer_is_kept_as_it_is_compared(tmp_path: Path, task: dict[str, Any], value: Any, answer: Any) -> None:
    section = recipe_in(tmp_path, task=task).task
    if answer is not None:
        assert section.read(value) == answer
        return
    with pytest.raises(EdgestillError):
        section.read(value)


READ = [
    ('{"rationale": "x", "answer": "12 apples"}', ("12", "x")),
    ('{"answer": 12.50}', ("12.5", None)),
    ("Luke has 84. 84 / 2 = 42.\nSo the answer is (84 / 2).", ("42", "Luke has 84. 84 / 2 = 42.")),
    ("two steps\nof it\n#### 72", ("72", "two steps\nof it")),
    ("Reason: we add.\nAnswer: 9", ("9", "we add.")),
    ("**Final answer:** 7", ("7", None)),
    ("$42", ("42", None)),
    ("In 2021 I counted 5 or so", "unparsable"),
    ("first 3\nthen 4", "unparsable"),
    ('{"answer": "many"}', "label_not_allowed"),
    ('{"answer": "3"} or {"answer": "4"}', "unparsable"),
    ("I'm sorry, but I can't count 3 things", "refused"),
    ("", "empty"),
]


@pytest.mark.parametrize(("content", "wanted"), READ)
def test_a_number_is_read_in_whatever_shape_it_comes_and_not_out_of_prose(
    tmp_path: Path, content: str, wanted: Any
) -> None:
    reading = form_of(recipe_in(tmp_path).task).read(content, "")
    assert wanted == (reading.reason if reading.label is None else (reading.label, reading.rationale))


def test_the_teacher_is_asked_for_an_answer_and_mends_one_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgestill.distill.teacher.open import open_teacher

    def script(call: Call) -> Answer:
        said = "12" if len(call.body["messages"]) > 2 else "a dozen"
        return Answer(json.dumps({"rationale": "eggs", "answer": said}))

    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    with ScriptedServer(script) as server:
        live = {"kind": "openai", "model": "big", "base_url": server.url, "path": None, "smoke_rows": 0}
        row = Row(row_id("eggs in a box?"), "eggs in a box?", None, "train")
        recipe = recipe_in(tmp_path, teacher=live)
        teacher = open_teacher(recipe, tmp_path / "recipe.yaml", tmp_path / "annotations", [row])
        assert teacher.ask([row], lambda _: None) is None
        answer = teacher.answer(row)
        teacher.close()
    assert isinstance(answer, Annotation)
    assert (answer.label, answer.rationale, answer.probabilities, answer.requests) == ("12", "eggs", None, 2)
    first, repair = server.calls
    schema = first.body["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"rationale": {"type": "string"}, "answer": {"type": "string"}}
    assert "logprobs" not in first.body
    assert "Labels" not in first.body["messages"][0]["content"]
    complaint = repair.body["messages"][-1]["content"]
    assert "answer 'a dozen' holds nothing to compare, wanted a number" in complaint
    assert complaint.endswith("answer is the number alone, in digits, without a unit.")


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_model_in_this_process_writes_its_answer(tmp_path: Path, tiny_base: Path, order: str) -> None:
    teacher = {"kind": "huggingface", "path": str(tiny_base), "rationale_order": order}
    recipe = recipe_in(tmp_path, task={"match": "exact"}, teacher=teacher)
    endpoint = LocalEndpoint(recipe, tmp_path / "recipe.yaml", "local:test")
    endpoint._opened = TransformersModel(str(tiny_base), tmp_path)
    messages = Prompter(recipe, "h", "m", first_dialect(recipe)).first("how many?").body["messages"]
    for limit in (8, 40, 90):
        reply = endpoint._answer({"messages": messages, "max_tokens": limit}).response
        assert reply["usage"]["completion_tokens"] <= limit
        assert reply["finish_reason"] == "length"  # a model that knows nothing never closes its quote
    assert list(json.loads(reply["content"])) == (
        ["rationale", "answer"] if order == "before" else ["answer", "rationale"]
    )
    assert "label_probabilities" not in reply


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"answer": 42.0, "rationale": "why"}, "42"),
        ({"label": "42"}, "42"),
        ({"raw": "It is 40 + 2. The answer is 42."}, "42"),
        ({"answer": "many"}, "label_not_allowed"),
        ({"answer": None}, "unparsable"),
        ({"raw": ""}, "unparsable"),
    ],
)
def test_a_recorded_answer_is_a_number_text_or_raw(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    path = tmp_path / "teacher.jsonl"
    path.write_text(json.dumps({"text": "x"} | record) + "\n", encoding="utf-8")
    answer = ReplayTeacher(path, recipe_in(tmp_path)).answer(Row("id", "x", None, "train"))
    if "raw" in record and not record["raw"]:
        said = "empty"
    assert said == (answer.reason if isinstance(answer, Rejection) else answer.label)


def test_gold_is_canonical_and_one_that_is_none_is_named_by_its_row(tmp_path: Path) -> None:
    rows = [{"text": f"{'abcdefgh'[i % 8] * 9} {i}", "gold": i / 2} for i in range(40)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = recipe_in(tmp_path)
    found = {row.text: row.gold for row in load_dataset(recipe, tmp_path / "recipe.yaml").split("test")}
    assert found
    assert all(gold == f"{int(text.split()[1]) / 2:g}" for text, gold in found.items())
    (tmp_path / "pool.jsonl").write_text('{"text": "x", "gold": "some"}\n', encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"pool.jsonl:1: gold answer 'some' holds nothing to compare"):
        load_dataset(recipe, tmp_path / "recipe.yaml")


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


def task_of(folder: Path, tiny_base: Path, tokenizer: Any, **train: Any) -> Any:
    recipe = recipe_in(folder, student={"base": str(tiny_base)}, train=train)
    return build_task(recipe.alone(recipe.the_student), prepare_base(str(tiny_base)), tokenizer)


def answered(label: str, rationale: str | None = "we add one\nand stop.") -> Annotation:
    return Annotation("id", label, None, rationale, 1, 1, None, "")


def said(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def test_answer_and_reason_are_two_tasks_over_one_text(tmp_path: Path, tiny_base: Path, tokenizer: Any) -> None:
    task = task_of(tmp_path, tiny_base, tokenizer)
    example = make_example(task, tokenizer, "2 and 1?", answered("-3"))
    assert (task.labels, task.answer, task.chain, task.max_answer_tokens) == ((), "text", False, 32)
    assert said(tokenizer, example.label.prompt) == "2 and 1?\nAnswer:"
    assert said(tokenizer, example.label.completion) == " -3<|im_end|>"
    assert example.rationale is not None
    assert said(tokenizer, example.rationale.prompt) == "2 and 1?\nReason:"
    assert example.label.answer_shares == [1.0] * len(example.label.completion)


@pytest.mark.parametrize("rationale", ["we add one\nand stop.", None])
def test_a_chain_is_one_branch_whose_answer_begins_behind_its_word(
    tmp_path: Path, tiny_base: Path, tokenizer: Any, rationale: str | None
) -> None:
    task = task_of(tmp_path, tiny_base, tokenizer, objective="chain")
    example = make_example(task, tokenizer, "2 and 1?", answered("-3", rationale))
    branch = example.label
    assert example.rationale is None
    assert (task.chain, task.rationale_suffix, task.max_answer_tokens) == (True, None, 256)
    assert said(tokenizer, branch.prompt) == "2 and 1?\nReason:"
    assert said(tokenizer, branch.completion[: branch.reason]) == f" {rationale or ''}\nAnswer:"
    assert said(tokenizer, branch.completion[branch.reason :]) == " -3<|im_end|>"


def test_the_loss_of_a_chain_weighs_its_parts_as_two_tasks() -> None:
    """Means over reason tokens and over answer tokens, by hand; the padded, plain computation is theirs to average."""
    rng = random.Random(3)
    ids = lambda count: tuple(rng.randrange(99) for _ in range(count))  # noqa: E731
    rows = [
        Example(Branch(ids(4), ids(7), reason=5, even=True), None, None, 2.0),
        Example(Branch(ids(3), ids(4), 1, True), None),
    ]
    packed = pack(rows)
    losses = torch.arange(1.0, 12.0)
    assert packed.tasks.tolist() == [1] * 5 + [0] * 2 + [1] + [0] * 3
    reason = losses[[0, 1, 2, 3, 4, 7]].mean().item()
    answer = (2 * losses[5:7].sum() + losses[8:].sum()).item() / 7
    loss, parts = label_rationale_loss(losses, packed, 0.3)
    assert loss.item() == pytest.approx(0.7 * answer + 0.3 * reason)
    assert parts.tolist() == pytest.approx([answer, reason])
    mass = (sum(row.label_weight for row in rows), float(sum(row.reason_tokens for row in rows)))
    split = [
        label_rationale_loss(part, pack([row]), 0.3, mass)[0]
        for part, row in zip((losses[:7], losses[7:]), rows, strict=True)
    ]
    assert sum(split).item() == pytest.approx(loss.item())


@pytest.fixture(scope="module")
def ending_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with words for its end: there it is the padding too, whose row of the tied head is zero."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("ending-base")
    shutil.copytree(tiny_base, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        model.get_input_embeddings().weight[2].normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("objective", ["label+rationale", "chain"])
def test_a_student_learns_to_write_and_writes_alike_in_training_and_on_the_device(
    tmp_path: Path, ending_base: Path, tokenizer: Any, objective: str
) -> None:
    """One sentence for all rows is learnt by heart; batched writing, padded on the left, equals the device's own."""
    train = {"objective": objective, "epochs": 30, "learning_rate": 0.01, "batch_rows": 2, "precision": "float32"}
    recipe = recipe_in(tmp_path, student={"base": str(ending_base)}, train=train, task={"max_answer_tokens": 12})
    base = prepare_base(str(ending_base))
    task = build_task(recipe.alone(recipe.the_student), base, tokenizer)
    texts = ["a tomato", "the long grass beside a frog", "lime and moss", "blood", "a cup of sea", "one door"]
    pairs = [(Row(row_id(t), t, None, "train"), answered("17", "so it is")) for t in texts]
    learner = train_learner(recipe, base, task, tokenizer, pairs)[0]
    assert isinstance(learner, CausalLearner)
    assert learner.causal.config._attn_implementation == "edgestill_packed"
    assert learner.answers([*texts, "a lamp"]) == ["17"] * 7
    learner.causal.set_attn_implementation("sdpa")
    session = TorchSession(learner.causal, 256)
    found = [write_answer(session, tokenizer, task, text).text for text in texts]
    learner.causal.set_attn_implementation("edgestill_packed")
    assert learner.written(texts) == found
    assert found[0] == ("so it is\nAnswer: 17" if objective == "chain" else "17")
