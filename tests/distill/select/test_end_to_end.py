"""A strategy at work on a teacher and a student: which rows are asked about and kept; kills, caps, failures, verbs."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from scripted_server import Call, Reply, ScriptedServer, Status, json_answer

from edgestill.distill import pipeline
from edgestill.distill.annotate import annotations_inputs
from edgestill.distill.dataset import Dataset, load_dataset
from edgestill.distill.estimate import estimate
from edgestill.distill.ledger import Ledger
from edgestill.distill.plan import make_plan
from edgestill.distill.recipe import read_recipe
from edgestill.distill.show import one_row
from edgestill.runtime import manifest
from edgestill.runtime.errors import BudgetReached, EdgestillError

Cli = Callable[..., subprocess.CompletedProcess[str]]
ENTROPY = {"strategy": "entropy", "rows": 16, "first_rows": 6, "rounds": 3, "seed": 1}
TAKEN_OUT = ("near_dev", "near_test")
RED = ("tomato", "blood", "ruby", "cherry")


def edited(recipe: Path, **sections: Any) -> Path:
    """The recipe file with keys of its sections set, and `select` replaced."""
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data |= {name: keys if name == "select" else {**data.get(name, {}), **keys} for name, keys in sections.items()}
    recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    return recipe


def annotated(recipe: Path) -> tuple[Ledger, EdgestillError | None]:
    """What the verb does, in `annotations` beside the recipe; all rows are accounted for.

    Rows that were taken out before asking are left out of the ledger's rejections.
    """
    (ledger, stopped), _ = pipeline.run_annotate(make_plan(recipe), recipe.parent / "annotations", lambda *_: None)
    assert ledger.accepted + sum(ledger.rejected.values()) + ledger.pending + ledger.not_selected == ledger.rows
    rejected = {reason: count for reason, count in ledger.rejected.items() if reason not in TAKEN_OUT}
    return dataclasses.replace(ledger, rejected=rejected), stopped


def records(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return [one for one in manifest.read_jsonl(folder / "annotations.jsonl") if one["row"]["split"] == split]


def statuses(folder: Path) -> Counter[str]:
    asked = [one for one in records(folder) if (one["answer"] or {}).get("reason") not in TAKEN_OUT]
    return Counter(record["status"] for record in asked)


def chosen(folder: Path) -> list[list[str]]:
    """Row ids of each choice."""
    return [record["ids"] for record in manifest.read_jsonl(folder / "choices.jsonl")]


def rows_of(recipe: Path) -> Dataset:
    return load_dataset(read_recipe(recipe), recipe)


def test_from_plan_to_a_trained_student_through_the_command_line(cli: Cli, tiny_recipe: Path, tmp_path: Path) -> None:
    edited(tiny_recipe, select=ENTROPY, bench={"against": ["teacher"]}, train={"epochs": 1, "quantize_aware": False})
    out = tmp_path / "run"
    facts = {}
    for verb in ("annotate", "train"):
        done = cli(verb, tiny_recipe, "--out", out, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        facts[verb] = json.loads(done.stdout)
    ledger, found = facts["annotate"], statuses(out / "annotations")
    others = ledger["splits"]["dev"] + ledger["splits"]["test"]
    assert ledger["splits"]["train"] == 16 == facts["train"]["rows"]["train"] == facts["train"]["training"]["rows"]
    assert (ledger["not_selected"], ledger["pending"]) == (found["not_selected"], 0)
    assert ledger["prompt_tokens"] == 40 * (16 + others)  # a row that nobody was asked about costs nothing
    assert [len(ids) for ids in chosen(out / "annotations")] == [6, 5, 5]
    assert ledger["selection"]["asked_rows"] == 16
    rounds = ledger["selection"]["rounds"]
    assert [(one["rows"], one["accepted"], one["trained_rows"]) for one in rounds] == [(6, 6, 0), (5, 5, 6), (5, 5, 11)]
    assert [(one["prompt_tokens"], one["completion_tokens"]) for one in rounds] == [(240, 60), (200, 50), (200, 50)]
    assert all(0 <= one["dev_agreement"] <= 1 and one["seconds"] > 0 for one in rounds[1:])
    before = {path: path.stat().st_mtime_ns for path in (out / "annotations").iterdir()}
    again = cli("annotate", tiny_recipe, "--out", out, cwd=tmp_path)
    assert "done before" in again.stderr
    assert f"0 pending, {ledger['not_selected']} not selected" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (out / "annotations").iterdir()} == before


@pytest.mark.parametrize("name", ["margin", "k_centre", "least_confidence"])
@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_both_kinds_of_student_can_choose(tiny_recipe: Path, tiny_encoder: Path, kind: str, name: str) -> None:
    if kind == "encoder":
        edited(tiny_recipe, student={"base": str(tiny_encoder), "kind": "encoder"}, train={"objective": "label"})
    edited(tiny_recipe, select={**ENTROPY, "strategy": name, "rounds": 2}, train={"epochs": 1})
    ledger, _ = annotated(tiny_recipe)
    assert ledger.selection is not None
    assert (ledger.splits["train"], ledger.selection["strategy"]) == (16, name)
    random = chosen(tiny_recipe.parent / "annotations")[0]
    edited(tiny_recipe, select={"strategy": "random", "rows": 16, "seed": 1})
    annotated(tiny_recipe)
    assert chosen(tiny_recipe.parent / "annotations")[0][:6] == random


def test_a_choice_that_is_known_is_not_made_again(tiny_recipe: Path) -> None:
    folder = tiny_recipe.parent / "annotations"
    edited(tiny_recipe, select=ENTROPY)
    annotated(tiny_recipe)
    first, kept = chosen(folder), (folder / "choices.jsonl").read_bytes()
    (folder / "annotations.json").unlink()
    annotated(tiny_recipe)
    assert (folder / "choices.jsonl").read_bytes() == kept  # the seconds in it too: nothing was trained
    (folder / "annotations.json").unlink()
    (folder / "choices.jsonl").unlink()
    annotated(tiny_recipe)
    assert chosen(folder) == first
    edited(tiny_recipe, select={**ENTROPY, "seed": 2})
    annotated(tiny_recipe)
    assert chosen(folder) != first


def test_what_annotations_depend_on_is_what_their_strategy_depends_on(tiny_recipe: Path) -> None:
    def inputs(select: dict[str, Any], epochs: int = 4, **train: Any) -> str:
        recipe = read_recipe(edited(tiny_recipe, select=select, train={"epochs": epochs, **train}))
        return annotations_inputs(recipe, data, "the teacher's")

    data, everything = rows_of(tiny_recipe), {"strategy": "all"}
    random = {"strategy": "random", "rows": 9}
    assert inputs(everything) == inputs(everything, 3)
    assert len({inputs(everything), inputs(random), inputs({**random, "rows": 8}), inputs(ENTROPY)}) == 4
    assert inputs(random) == inputs(random, 3)
    assert inputs(ENTROPY) != inputs(ENTROPY, 3)
    assert inputs(ENTROPY, quantize_aware=False) == inputs(ENTROPY, quantize_aware="auto")


@pytest.mark.parametrize(("strategy", "stands"), [("entropy", False), ("random", True)])
def test_a_base_with_other_weights_chooses_anew(tiny_recipe: Path, strategy: str, stands: bool) -> None:
    base, folder = tiny_recipe.parent / "base", tiny_recipe.parent / "annotations"
    shutil.copytree(read_recipe(tiny_recipe).students[0].base, base)
    select = {"strategy": "random", "rows": 6} if stands else {"strategy": strategy, "rows": 6, "rounds": 2}
    edited(tiny_recipe, select=select, student={"base": str(base)}, train={"epochs": 1})
    annotated(tiny_recipe)
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    _, done_before = pipeline.run_annotate(make_plan(tiny_recipe), folder, lambda *_: None)
    assert done_before == stands


def test_a_cut_student_can_be_unsure_of_rows_before_any_is_answered(tiny_recipe: Path, tiny_encoder: Path) -> None:
    lines = tiny_recipe.with_name("teacher.jsonl").read_text(encoding="utf-8").splitlines()
    odds = [{"probabilities": {"red": 0.4, "green": 0.4, json.loads(line)["label"]: 0.6}} for line in lines]
    told = [json.dumps(json.loads(line) | one) for line, one in zip(lines, odds, strict=True)]
    tiny_recipe.with_name("teacher.jsonl").write_text("\n".join(told), encoding="utf-8")
    student = {"base": str(tiny_encoder), "kind": "encoder", "layers": 1, "keep": "importance"}
    select = {"strategy": "llkd", "lazy": True, "rows": 4}
    ledger, _ = annotated(edited(tiny_recipe, student=student, select=select, train={"objective": "label"}))
    assert 0 < ledger.splits["train"] <= 4


def test_rows_corrected_by_hand_are_learnt_from_and_not_chosen(tiny_recipe: Path) -> None:
    rows = rows_of(tiny_recipe).split("train")
    lines = [json.dumps({"id": row.id, "label": "red"}) for row in rows[:5]]
    (tiny_recipe.parent / "by_hand.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    edited(tiny_recipe, data={"corrections": "by_hand.jsonl"}, select={**ENTROPY, "rounds": 2})
    ledger, _ = annotated(tiny_recipe)
    assert (ledger.corrected, ledger.splits["train"]) == (5, 16 + 5)
    assert ledger.selection is not None
    assert [one["trained_rows"] for one in ledger.selection["rounds"]] == [0, 6 + 5]
    assert not {row.id for row in rows[:5]} & {
        name for ids in chosen(tiny_recipe.parent / "annotations") for name in ids
    }


def test_a_row_that_was_not_selected_says_so_and_is_no_rejection(cli: Cli, tiny_recipe: Path) -> None:
    folder = tiny_recipe.parent / "annotations"
    edited(tiny_recipe, select={"strategy": "random", "rows": 9})
    ledger, _ = annotated(tiny_recipe)
    left = next(record for record in records(folder) if record["status"] == "not_selected")
    facts = one_row(folder, left["row"]["id"]).facts
    assert (facts["status"], left["answer"], facts.get("raw"), facts.get("usd")) == ("not_selected", None, None, None)
    assert ledger.rejected == {}
    assert cli("rejects", "--out", tiny_recipe.parent).returncode == 0


def test_a_plan_counts_the_rows_that_will_be_asked_about(tiny_recipe: Path) -> None:
    whole = estimate(make_plan(tiny_recipe))
    edited(tiny_recipe, select=ENTROPY)
    less = estimate(make_plan(tiny_recipe))
    assert (whole.not_selected, less.not_selected) == (0, whole.rows["train"] - 16)
    assert less.known == whole.known - less.not_selected
    assert f"{less.not_selected} not selected" in less.text


KILLED = """
import sys
from pathlib import Path
from edgestill.distill import pipeline
from edgestill.distill.plan import make_plan
recipe = Path(sys.argv[1])
pipeline.run_annotate(make_plan(recipe), recipe.parent / "annotations", lambda *_: None)
"""


def test_a_run_that_is_killed_between_its_rounds_takes_the_same_rows(tiny_recipe: Path) -> None:
    folder = tiny_recipe.parent / "annotations"
    edited(tiny_recipe, select=ENTROPY, train={"epochs": 2})
    annotated(tiny_recipe)
    whole, rows = chosen(folder), (folder / "annotations.jsonl").read_bytes()
    for name in ("annotations.json", "annotations.jsonl", "choices.jsonl"):
        (folder / name).unlink()
    for choices in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tiny_recipe)], env={**os.environ})
        until = time.monotonic() + 120
        while not (folder / "choices.jsonl").exists() or len(chosen(folder)) < choices:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert chosen(folder) == whole[: len(chosen(folder))]
        assert not (folder / "annotations.json").exists()
    annotated(tiny_recipe)
    assert (chosen(folder), (folder / "annotations.jsonl").read_bytes()) == (whole, rows)


class Scripted:
    """A live teacher. It counts what it was asked, says nothing usable about `silent` texts and faults on `down`."""

    def __init__(self, recipe: Path, **teacher: Any) -> None:
        self.silent, self.down = set[str](), set[str]()
        self.asked: Counter[str] = Counter()
        self.server = ScriptedServer(self._say).__enter__()
        section = {"kind": "openai", "model": "scripted", "base_url": self.server.url, "max_attempts": 1}
        section |= {"backoff_s": 0.001, "logprobs": False, "price_usd_per_mtok": {"input": 0.15, "output": 0.6}}
        data = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        data["teacher"] = section | teacher
        recipe.write_text(yaml.safe_dump(data), encoding="utf-8")

    def _say(self, call: Call) -> Reply:
        said = str(call.body["messages"][1]["content"])  # also when it is asked to mend its answer
        text = next((one for one in (*self.silent, *self.down) if one in said), "")
        self.asked[call.key] += 1
        if text in self.down:
            return Status(500)
        return json_answer("perhaps" if text in self.silent else "red" if any(w in said for w in RED) else "green")


@pytest.fixture
def live(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    scripted = Scripted(tiny_recipe)
    edited(tiny_recipe, select={**ENTROPY, "rounds": 2}, train={"epochs": 1})
    yield scripted
    scripted.server.__exit__(None, None)


def test_a_cap_stops_in_a_round_and_a_higher_one_goes_on_without_asking_twice(
    live: Scripted, tiny_recipe: Path
) -> None:
    folder, data = tiny_recipe.parent / "annotations", rows_of(tiny_recipe)
    others = len(data.rows) - len(data.split("train"))
    edited(tiny_recipe, budget={"requests": others + 9})
    ledger, stopped = annotated(tiny_recipe)
    assert isinstance(stopped, BudgetReached)
    assert statuses(folder) == {"accepted": 9, "pending": 7, "not_selected": len(data.split("train")) - 16}
    before = chosen(folder)
    with pytest.raises(EdgestillError, match=r"7 of .* rows are pending"):
        pipeline.run_train(make_plan(tiny_recipe).students[0], folder, tiny_recipe.parent / "student", lambda *_: None)
    edited(tiny_recipe, budget={"requests": 1_000})
    ledger, stopped = annotated(tiny_recipe)
    assert (stopped, ledger.pending, ledger.splits["train"]) == (None, 0, 16)
    assert (chosen(folder), len(live.asked), set(live.asked.values())) == (before, others + 16, {1})
    assert ledger.requests == others + 16


@pytest.mark.usefixtures("live")
def test_a_cap_before_the_first_choice_leaves_no_finished_annotations(tiny_recipe: Path) -> None:
    edited(tiny_recipe, budget={"requests": 3})
    ledger, stopped = annotated(tiny_recipe)
    assert isinstance(stopped, BudgetReached)
    assert ledger.goes_on
    assert statuses(tiny_recipe.parent / "annotations") == {"not_selected": len(rows_of(tiny_recipe).split("train"))}


def test_the_smoke_gate_is_before_the_first_rows_alone_and_rejected_rows_count(
    live: Scripted, tiny_recipe: Path
) -> None:
    live.silent = {row.text for row in rows_of(tiny_recipe).split("train")}
    ledger, stopped = annotated(tiny_recipe)
    assert (stopped, ledger.rejected) == (None, {"label_not_allowed": 16})
    assert ledger.selection is not None
    assert [(one["rows"], one["rejected"]) for one in ledger.selection["rounds"]] == [(6, 6), (10, 10)]


def test_a_smoke_gate_that_fails_on_all_development_and_test_rows_is_not_taken_for_a_finished_run(
    live: Scripted, tiny_recipe: Path
) -> None:
    data, folder = rows_of(tiny_recipe), tiny_recipe.parent / "annotations"
    live.silent = {row.text for row in data.rows if row.split != "train"}
    edited(tiny_recipe, teacher={"smoke_rows": len(live.silent)})
    ledger, _ = annotated(tiny_recipe)
    assert (ledger.pending, ledger.stopped is None) == (0, False)
    with pytest.raises(EdgestillError, match="stopped before all rows were chosen: smoke gate"):
        pipeline.run_train(make_plan(tiny_recipe).students[0], folder, tiny_recipe.parent / "student", lambda *_: None)
    _, done_before = pipeline.run_annotate(make_plan(tiny_recipe), folder, lambda *_: None)
    assert not done_before


def test_a_row_that_failed_is_tried_again_and_the_choices_after_it_stand(live: Scripted, tiny_recipe: Path) -> None:
    folder = tiny_recipe.parent / "annotations"
    edited(tiny_recipe, select=ENTROPY)
    data = rows_of(tiny_recipe)
    annotated(tiny_recipe)
    texts = {row.id: row.text for row in data.rows}
    failing = texts[chosen(folder)[0][0]]
    for path in (folder / "annotations.json", folder / "choices.jsonl", folder / "spend.sqlite"):
        path.unlink()
    for path in (tiny_recipe.parent / "cache").iterdir():
        path.unlink()
    live.down = {failing}
    ledger, stopped = annotated(tiny_recipe)
    assert (stopped, ledger.rejected, ledger.unfinished) == (None, {"endpoint_error": 1}, 1)  # asked in the first turn
    before, asked = chosen(folder), len(live.asked)
    live.down = set()
    ledger, stopped = annotated(tiny_recipe)
    assert (stopped, ledger.rejected, ledger.splits["train"]) == (None, {}, 16)
    assert (chosen(folder), len(live.asked)) == (before, asked)
