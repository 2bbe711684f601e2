"""An experiment: what its arms are, that cells are resumed and answers shared, and what a cell says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from scripted_server import Call, ScriptedServer, Status, json_answer
from typer.testing import CliRunner

from edgestill.distill.dataset import row_id
from edgestill.distill.experiment.places import input_hashes
from edgestill.distill.experiment.run import ExperimentRun, open_experiment
from edgestill.distill.recipe import check_recipe, read_recipe
from edgestill.distill.section_file import read_mapping
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.experiment_files import ExperimentCell, RowIds, cell_path, rows_path, unpack_bits
from edgestill.runtime.metrics import wilson
from edgestill.runtime.verbs_experiment import experiment

Text = dict[str, Any]
DRIVER = """
import sys
from pathlib import Path
from edgestill.distill.experiment.run import open_experiment
run = open_experiment(Path(sys.argv[1]), Path(sys.argv[2]))
for cell in run.cells():
    run.finished(cell) or run.run(cell)
"""


@pytest.fixture(scope="module")
def tiny_encoder_recipe(
    tmp_path_factory: pytest.TempPathFactory, tiny_rows: Callable[[Path], Path], tiny_encoder: Path
) -> Path:
    """A recipe of a tiny encoder that trains in a second; tests write their experiments beside it."""
    path = tiny_rows(tmp_path_factory.mktemp("experiment"))
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("student:", "train:"))]
    kept += [f"student: {{base: {tiny_encoder}, kind: encoder}}"]
    kept += ["train: {epochs: 2, learning_rate: 0.003, batch_rows: 8, objective: label, precision: float32}"]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def write(recipe: Path, name: str = "tried", **sections: Any) -> Path:
    path = recipe.parent / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "recipe": recipe.name} | sections), encoding="utf-8")
    return path


def opened(recipe: Path, out: Path | None = None, **sections: Any) -> ExperimentRun:
    return open_experiment(write(recipe, **sections), out or recipe.parent / "nowhere")


def arm_of(run: ExperimentRun, name: str) -> Any:
    return next(arm for arm in run.arms if arm.name == name)


def test_dotted_and_nested_overrides_mean_the_same(tiny_encoder_recipe: Path) -> None:
    run = opened(
        tiny_encoder_recipe,
        every_arm={"train.batch_rows": 4},
        arms={"as-is": None, "dotted": {"train.epochs": 3}, "nested": {"train": {"epochs": 4}}},
    )
    train = {arm.name: arm.sections["train"] for arm in run.arms}
    assert [train[name]["epochs"] for name in ("as-is", "dotted", "nested")] == [2, 3, 4]
    assert all(found["batch_rows"] == 4 for found in train.values())


def test_another_strategy_leaves_no_key_of_the_recipes_own(tiny_encoder_recipe: Path) -> None:
    select = {"strategy": "entropy", "rows": 12, "rounds": 3}
    arms = {"more": {"select": {"rows": 15}}, "others": {"select": {"strategy": "random", "rows": 9}}}
    run = opened(tiny_encoder_recipe, every_arm={"select": select}, arms=arms, control=False)
    assert arm_of(run, "more").sections["select"] == {**select, "rows": 15}
    assert arm_of(run, "others").sections["select"] == {"strategy": "random", "rows": 9}


def test_dotted_keys_mean_the_same_in_any_order(tiny_encoder_recipe: Path) -> None:
    dotted = {"select.rows": 12, "select.rounds": 3, "select.strategy": "entropy"}
    arms = {"a": dotted, "b": {**dict(reversed(dotted.items())), "train.epochs": 3}}
    run = opened(tiny_encoder_recipe, arms=arms, control=False)
    wanted = {"strategy": "entropy", "rows": 12, "rounds": 3}
    assert [arm_of(run, name).sections["select"] for name in "ab"] == [wanted, wanted]


def test_what_changes_no_figure_measures_no_cell_again(finished: ExperimentRun) -> None:
    sections: Text = {"arms": {"all": None}, "seeds": [3], "gold_of_pool": "gold.jsonl"}
    for overrides, stands in (({"budget.requests": 999, "teacher.concurrency": 3}, True), ({"train.epochs": 3}, False)):
        again = open_experiment(write(finished.recipe_path, "capped", every_arm=overrides, **sections), finished.out)
        (cell,) = again.cells()
        assert (again.finished(cell) is not None) == stands


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"arms": {}}, "arms"),
        ({"arms": {"a/b": None}}, "'a/b'"),
        ({"arms": {"a": None}, "seeds": [7, 7]}, "each seed once"),
        ({"arms": {"a": None}, "against": "b"}, "one of the arms a"),
        ({"arms": {"a": None}, "controll": False}, "nearest known key: control"),
        ({"arms": {"a": None, "b": {"train.epoch": 2}}}, "arm b: unknown key train.epoch; nearest known key: epochs"),
        ({"arms": {"a": None, "b": {"select": {"strategy": "best"}}}}, "arm b: select: strategy 'best' is not known"),
        ({"arms": {"a": None, "b": {"train.epochs": 2}}}, "the arms a and b are the same recipe"),
        ({"arms": {"a": None, "b": {"train.seed": 99}}}, "the arms a and b are the same recipe"),
        ({"arms": {"a": None, "b": {"data.pool": "none.jsonl"}}}, "data.pool: no file"),
        ({"arms": {"a": None, "b": {"student.base": "./nowhere"}}}, "no folder"),
        ({"arms": {"a": None}, "gold_of_pool": "none.jsonl"}, "gold_of_pool: no file"),
        ({"arms": {"a": {"data.gold": None}}, "metric": "gold"}, "write metric: teacher"),
    ],
)
def test_a_bad_experiment_is_refused_in_one_line_before_any_work(
    tiny_encoder_recipe: Path, sections: Text, words: str
) -> None:
    with pytest.raises(EdgestillError) as told:
        opened(tiny_encoder_recipe, **sections)
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tiny_encoder_recipe.parent / "nowhere").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a ruby"}', "gold.jsonl: row 2 has no field 'label'"),
        ('{"label": "red"}', "gold.jsonl: row 2 has no field 'text'"),
        ('{"text": "a ruby", "label": "blue"}', "gold.jsonl: row 2: label 'blue' is not one of"),
        ("a ruby", "is not JSON lines"),
    ],
)
def test_gold_that_cannot_be_read_is_refused_before_any_work(
    tiny_encoder_recipe: Path, tmp_path: Path, line: str, words: str
) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"text": "moss", "label": "green"}\n' + line, encoding="utf-8")
    with pytest.raises(EdgestillError) as told:
        opened(tiny_encoder_recipe, arms={"a": None}, gold_of_pool=str(gold))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_local_teacher_and_a_base_that_changed_are_other_inputs(tiny_encoder_recipe: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("teacher", "base")}
    for folder in folders.values():
        shutil.copytree(read_recipe(tiny_encoder_recipe).students[0].base, folder)
    sections = read_mapping(tiny_encoder_recipe, "recipe", "")
    sections["student"] = {"base": str(folders["base"]), "kind": "encoder"}
    sections["teacher"] = {"kind": "huggingface", "path": str(folders["teacher"])}
    found = [input_hashes(sections, tiny_encoder_recipe)]
    for folder in folders.values():
        config = folder / "config.json"
        config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        found.append(input_hashes(sections, tiny_encoder_recipe))
    assert len({json.dumps(one, sort_keys=True) for one in found}) == 3


def test_arms_with_one_selection_share_a_random_control_of_as_many_rows(tiny_encoder_recipe: Path) -> None:
    chosen = {name: {"select": {"strategy": name, "rows": 20}} for name in ("entropy", "margin")}
    run = opened(tiny_encoder_recipe, arms={"all": None, **chosen})
    assert [arm.name for arm in run.arms] == ["all", "entropy", "random-20", "margin"]
    assert arm_of(run, "random-20").sections["select"] == {"strategy": "random", "rows": 20}
    assert arm_of(run, "entropy").control == arm_of(run, "margin").control == "random-20"
    assert [arm.is_control for arm in run.arms] == [False, False, True, False]


def test_no_control_is_added_where_an_equal_arm_is_there_or_none_is_wanted(tiny_encoder_recipe: Path) -> None:
    arms = {
        "some": {"select": {"strategy": "random", "rows": 20}},
        "entropy": {"select": {"strategy": "entropy", "rows": 20}},
    }
    run = opened(tiny_encoder_recipe, arms=arms)
    assert ([arm.name for arm in run.arms], arm_of(run, "entropy").control) == (["some", "entropy"], "some")
    assert arm_of(opened(tiny_encoder_recipe, arms=arms, control=False), "entropy").control is None
    other = {**arms, "entropy": {**arms["entropy"], "train.epochs": 5}}
    names = [arm.name for arm in opened(tiny_encoder_recipe, arms=other).arms]
    assert names == ["some", "entropy", "random-20"], "with other epochs it is another control"


def test_each_seed_is_the_trainings_and_the_strategys_and_the_splits_where_that_is_wanted(
    tiny_encoder_recipe: Path,
) -> None:
    arms = {"some": {"select": {"strategy": "random", "rows": 20}}, "all": None}
    run = opened(tiny_encoder_recipe, arms=arms)
    some = arm_of(run, "some").sections_for(11, split_seeds=False)
    assert (some["train"]["seed"], some["select"]["seed"], some["data"].get("seed")) == (11, 11, None)
    every = arm_of(run, "all").sections_for(11, split_seeds=True)
    assert (every["data"]["seed"], every.get("select")) == (11, None)


def test_of_several_students_the_first_is_measured_and_keeps_no_seed_of_its_own(
    tiny_encoder_recipe: Path, tiny_encoder: Path
) -> None:
    text = tiny_encoder_recipe.read_text(encoding="utf-8")
    one = f"{{base: {tiny_encoder}, kind: encoder, name: NAME, train: {{seed: 5, epochs: 3}}}}"
    both = f"student: [{one.replace('NAME', 'x')}, {one.replace('NAME', 'y')}]"
    lines = [both if line.startswith("student:") else line for line in text.splitlines()]
    path = tiny_encoder_recipe.with_name("several.yaml")
    path.write_text("\n".join(lines), encoding="utf-8")
    both_arms = opened(path, arms={"all": None, "longer": {"train.epochs": 8}}).arms
    assert [arm.sections["student"]["name"] for arm in both_arms] == ["x", "x"]
    recipes = [check_recipe(arm.sections, arm.name) for arm in both_arms]
    assert [recipe.alone(recipe.students[0]).train.epochs for recipe in recipes] == [3, 8], "the arm has the last word"
    assert all("seed" not in arm.sections["train"] for arm in both_arms)


@pytest.fixture(scope="module")
def finished(tiny_encoder_recipe: Path) -> ExperimentRun:
    """Two arms of one seed, run: all rows, and a random half with the pool's gold known."""
    rows = [json.loads(line) for line in (tiny_encoder_recipe.parent / "teacher.jsonl").read_text().splitlines()]
    wrong = [{"text": row["text"], "label": "green" if i % 4 == 0 else row["label"]} for i, row in enumerate(rows)]
    gold = tiny_encoder_recipe.parent / "gold.jsonl"
    gold.write_text("".join(json.dumps(row) + "\n" for row in wrong), encoding="utf-8")
    arms = {"all": None, "some": {"select": {"strategy": "random", "rows": 20}}}
    path = write(tiny_encoder_recipe, "finished", arms=arms, seeds=[3], gold_of_pool=gold.name)
    run = open_experiment(path, tiny_encoder_recipe.parent / "run")
    for cell in run.cells():
        run.run(cell)
    return run


def cell_of(run: ExperimentRun, arm: str) -> ExperimentCell:
    return manifest.load(ExperimentCell, cell_path(run.out, arm, run.experiment.seeds[0]))


def annotated(run: ExperimentRun, arm: str) -> list[Text]:
    folder = run.out / "arms" / arm / str(run.experiment.seeds[0])
    return list(manifest.read_jsonl(folder / "annotations" / "annotations.jsonl"))


def test_a_cell_counts_the_training_rows_by_what_became_of_them(finished: ExperimentRun) -> None:
    for arm, asked in (("all", None), ("some", 20)):
        cell, records = cell_of(finished, arm), annotated(finished, arm)
        own = [one for one in records if one["row"]["split"] == "train"]
        own = [one for one in own if (one["answer"] or {}).get("reason") not in ("duplicate", "in_test", "near_test")]
        accepted = sum(one["status"] == "accepted" for one in own)
        assert cell.rows["accepted"] == cell.rows["learnt_from"] == cell.training_rows == accepted
        assert cell.rows["asked"] == (asked or accepted)
        assert cell.rows["not_selected"] == sum(one["status"] == "not_selected" for one in own)
    assert cell_of(finished, "some").rows["not_selected"] > 0


def test_teacher_tokens_of_test_rows_stand_apart(finished: ExperimentRun) -> None:
    for arm in ("all", "some"):
        cell, records = cell_of(finished, arm), annotated(finished, arm)
        accepted = [one["row"]["split"] for one in records if one["status"] == "accepted"]
        tests = accepted.count("test")
        assert cell.testing.prompt_tokens == 40 * tests
        assert (cell.testing.completion_tokens, cell.testing.usd) == (10 * tests, None), "the recipe names no price"
        assert cell.learning.prompt_tokens == 40 * (len(accepted) - tests)
    assert cell_of(finished, "some").learning.prompt_tokens < cell_of(finished, "all").learning.prompt_tokens  # type: ignore[operator]


def test_the_bits_are_the_students_answers_against_gold_in_the_order_of_the_ids(finished: ExperimentRun) -> None:
    cell = cell_of(finished, "all")
    ids = manifest.load(RowIds, rows_path(finished.out, cell.row_ids_sha256)).ids
    student = finished.out / "arms" / "all" / "3" / "student"
    gold = {row["id"]: row["gold"] for row in manifest.read_jsonl(student / "test.jsonl")}
    said = {row["row_id"]: row["label"] for row in manifest.read_jsonl(student / "predictions.jsonl")}
    bits = unpack_bits(cell.right, cell.test_rows)
    assert dict(zip(ids, bits, strict=True)) == {one: said[one] == gold[one] for one in gold}
    assert list(ids) == sorted(ids)
    assert cell.accuracy == wilson(sum(bits), len(bits))
    assert 0 < sum(bits) < len(bits) or cell.accuracy.value in (0, 1)


def test_label_quality_is_of_the_rows_learnt_from_and_the_gold_reaches_nobody_else(finished: ExperimentRun) -> None:
    gold = {row_id(row["text"]): row["label"] for row in manifest.read_jsonl(finished.path.parent / "gold.jsonl")}
    for arm in ("all", "some"):
        cell = cell_of(finished, arm)
        used = [one for one in annotated(finished, arm) if one["row"]["split"] == "train"]
        used = [one for one in used if one["status"] == "accepted"]
        right = [one["answer"]["label"] == gold[one["row"]["id"]] for one in used]
        assert cell.label_quality == wilson(sum(right), len(right))
        assert 0 < sum(right) < len(right)
        assert all(one["row"]["gold"] is None for one in used)


def test_a_cells_folder_is_an_ordinary_run_that_lies_anywhere(finished: ExperimentRun) -> None:
    from edgestill.distill.pipeline import run_annotate
    from edgestill.distill.plan import make_plan

    folder = finished.out / "arms" / "some" / "3"
    _, done_before = run_annotate(make_plan(folder / "recipe.yaml"), folder / "annotations", lambda *_: None)
    assert done_before


def test_a_finished_cell_stands_until_its_recipe_or_its_data_change(finished: ExperimentRun) -> None:
    arms = {"all": None, "some": {"select": {"strategy": "random", "rows": 21}}}
    sections = {"arms": arms, "seeds": [3, 4], "gold_of_pool": "gold.jsonl"}
    again = open_experiment(write(finished.recipe_path, "changed", **sections), finished.out)
    assert [again.finished(cell) is not None for cell in again.cells()] == [True, False, False, False]
    gold = finished.path.parent / "gold.jsonl"
    text = gold.read_text(encoding="utf-8")
    try:
        gold.write_text(text + "\n", encoding="utf-8")
        changed = open_experiment(again.path, finished.out)
        assert not any(changed.finished(cell) for cell in changed.cells())
    finally:
        gold.write_text(text, encoding="utf-8")


def test_done_json_names_what_is_finished(finished: ExperimentRun) -> None:
    done = finished.write_done()
    assert {arm.name: arm.seeds for arm in done.arms} == {"all": (3,), "some": (3,)}
    assert (done.against, done.metric) == ("all", "gold")


def test_only_names_an_arm(finished: ExperimentRun) -> None:
    assert [cell.name for cell in finished.cells(["some"])] == ["some 3"]
    with pytest.raises(UsageError, match="the arms are all, some"):
        finished.cells(["most"])


def told(*arguments: object, catch: bool = False) -> Any:
    app = typer.Typer()
    app.command()(experiment)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=catch)


def asked_for(*arguments: object) -> Any:
    done = told(*arguments)
    assert done.exit_code == 0
    return done


def test_an_arm_that_fails_leaves_the_others_and_the_table(tiny_encoder_recipe: Path, tmp_path: Path) -> None:
    arms = {"gated": {"select": {"strategy": "llkd"}}, "some": {"select": {"strategy": "random", "rows": 20}}}
    path = write(tiny_encoder_recipe, "failing", arms=arms, seeds=[3], control=False)
    answers = tiny_encoder_recipe.parent / "teacher.jsonl"
    before = answers.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in before.splitlines()]
    try:  # answers that tell no probabilities, which is seen when the training begins
        bare = [{key: row[key] for key in row if key != "probabilities"} for row in rows]
        answers.write_text("".join(json.dumps(row) + "\n" for row in bare), encoding="utf-8")
        done = told(path, "--out", tmp_path / "out", catch=True)
    finally:
        answers.write_text(before, encoding="utf-8")
    assert isinstance(done.exception, EdgestillError)
    assert str(done.exception).startswith("1 of 2 cells failed; gated 3: ")
    assert "some" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_gold_that_belongs_to_no_row_is_refused_before_training(tiny_encoder_recipe: Path, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"text": "nothing of the kind", "label": "green"}\n', encoding="utf-8")
    run = open_experiment(
        write(tiny_encoder_recipe, "strange", arms={"a": None}, seeds=[3], gold_of_pool=str(gold)), tmp_path / "out"
    )
    with pytest.raises(EdgestillError, match="none of its 1 texts is a row's"):
        run.run(run.cells()[0])
    assert not list((tmp_path / "out").rglob("training.json"))


def test_the_verb_runs_nothing_twice_and_ends_with_what_to_do_next(finished: ExperimentRun) -> None:
    cell = cell_path(finished.out, "all", 3)
    written = cell.stat().st_mtime_ns
    done = asked_for(finished.path, "--out", finished.out)
    assert done.stdout.splitlines()[-1] == f"Next: open {finished.out / 'table.md'}"
    assert [line.split()[0:2] for line in done.stderr.splitlines()] == [["all", "3"], ["some", "3"]]
    assert done.stderr.count("done before") == 2
    assert cell.stat().st_mtime_ns == written
    told = json.loads(asked_for(finished.path, "--out", finished.out, "--json").stdout)
    assert told["schema"] == "edgestill-experiment/1"
    assert told == json.loads((finished.out / "experiment.json").read_text(encoding="utf-8"))


def test_the_list_tells_which_cells_are_finished_and_runs_none(finished: ExperimentRun) -> None:
    sections: Text = {"arms": {"all": None, "more": {"train.epochs": 9}}, "seeds": [3], "gold_of_pool": "gold.jsonl"}
    path = write(finished.recipe_path, "listed", **sections)
    said = asked_for(path, "--out", finished.out, "--list").stdout.splitlines()
    assert said[:2] == ["done  all 3", "open  more 3"]
    assert not cell_path(finished.out, "more", 3).exists()


@pytest.fixture
def live_recipe(tiny_encoder_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(server, experiment's recipe, words it fails at): a live teacher with a cache of its own."""
    down = set[str]()
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def answer(call: Call) -> Any:
        if any(word in call.text for word in down):
            return Status(500)
        return json_answer(
            "red" if any(word in call.text for word in ("tomato", "cherry", "blood", "ruby")) else "green"
        )

    with ScriptedServer(answer) as server:
        text = tiny_encoder_recipe.read_text(encoding="utf-8")
        teacher = (
            f"teacher: {{kind: openai, model: scripted, base_url: '{server.url}', smoke_rows: 0, max_attempts: 1}}"
        )
        lines = [teacher if line.startswith("teacher:") else line for line in text.splitlines()]
        path = tiny_encoder_recipe.with_name("live-recipe.yaml")
        path.write_text("\n".join(lines), encoding="utf-8")
        yield server, path, down


def test_a_second_arm_pays_for_no_answer_that_the_first_has_bought(live_recipe: Any, tmp_path: Path) -> None:
    server, recipe, _ = live_recipe
    arms = {"all": None, "longer": {"train.epochs": 3}}
    run = open_experiment(write(recipe, "live", arms=arms, seeds=[1]), tmp_path / "out")
    first, second = run.cells()
    bought = run.run(first)
    asked = len(server.calls)
    assert asked > bought.rows["asked"] > 0
    reused = run.run(second)
    assert len(server.calls) == asked
    assert reused.learning == bought.learning, "what answers took is told whoever paid"
    assert reused.annotations_sha256 != ""


def test_a_cell_with_rows_that_failed_is_not_finished(live_recipe: Any, tmp_path: Path) -> None:
    _, recipe, down = live_recipe
    run = open_experiment(write(recipe, "failed", arms={"all": None}, seeds=[1]), tmp_path / "out")
    down |= {"tomato number 0", "tomato number 1"}
    (cell,) = run.cells()
    with pytest.raises(EdgestillError, match=r"all 1: \d of \d+ rows have no answer"):
        run.run(cell)
    assert run.finished(cell) is None


@pytest.mark.parametrize("moment", ["first cell's annotations", "second cell's start"])
def test_a_kill_loses_the_cell_under_way_and_nothing_else(
    tiny_encoder_recipe: Path, tmp_path: Path, moment: str
) -> None:
    arms: Text = {"all": None} if moment.startswith("first") else {"all": None, "longer": {"train.epochs": 3}}
    path = write(tiny_encoder_recipe, "killed", arms=arms, seeds=[1])
    out = tmp_path / "out"
    command = [sys.executable, "-c", DRIVER, str(path), str(out)]
    first = cell_path(out, "all", 1)
    awaited = first if moment.startswith("second") else out / "arms" / "all" / "1" / "annotations" / "annotations.json"
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not awaited.exists() and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    run = open_experiment(path, out)
    kept = [run.finished(cell) for cell in run.cells()]
    assert kept[-1] is None
    assert (kept[0] is None) == moment.startswith("first")
    for cell in run.cells():
        if run.finished(cell) is None:
            run.run(cell)
    whole = [run.finished(cell) for cell in run.cells()]
    assert None not in whole
    assert kept[0] in (None, whole[0])
