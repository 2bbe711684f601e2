"""An encoder's bundle from a finished run: what lies in it, how it answers, what it refuses, and gates that notice."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from encoder_runs import LABELS, MINILM, TEXTS, Run, build_both, config_of, encoder_task, export_section, silent
from onnx import numpy_helper

from edgestill.export.gates.answers import answer_gates, measure
from edgestill.export.gates.reference import references
from edgestill.export.pack import run_export
from edgestill.runtime import EdgestillError, load, manifest
from edgestill.runtime.errors import GateFailed, UsageError
from edgestill.runtime.onnx_session import OnnxEncoderSession
from edgestill.runtime.task import load_tokenizer
from edgestill.runtime.verify import verify_bundle

Bundles = dict[str, Path]


@pytest.fixture
def copied_run(roberta_run: Run, tmp_path: Path) -> Path:
    """A run to change, whose manifest lists no file: its changes are to be noticed by what comes after."""
    folder = Path(shutil.copytree(roberta_run[0], tmp_path / "student"))
    listed = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    manifest.write_json(folder / "student.json", {**listed, "files": {}})
    return folder


@pytest.fixture(params=["minilm", "roberta"])
def bundles(request: pytest.FixtureRequest, minilm_bundles: Bundles, roberta_bundles: Bundles) -> Bundles:
    return minilm_bundles if request.param == "minilm" else roberta_bundles


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0"])
def test_the_device_answers_as_torch_does_on_the_same_grid(bundles: Bundles, quantization: str) -> None:
    for engine in ("onnx", "gguf"):
        check = load(bundles[quantization], engine).selfcheck()
        assert check.rows == len(TEXTS)
        assert check.labels_changed == 0
        assert check.max_probability_difference < 0.05
    golden = list(manifest.read_jsonl(bundles[quantization] / "golden.jsonl"))
    assert max(max(row["probabilities"].values()) for row in golden) > 0.4  # the head tells texts apart


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_eight_bits_stay_near_the_trained_weights(minilm_run: Run, minilm_bundles: Bundles, engine: str) -> None:
    import torch

    encoder, student = minilm_run[1], load(minilm_bundles["q8_0"], engine)
    for text in TEXTS:
        ids = student.task.encode(student._tokenizer, text)
        with torch.inference_mode():
            wanted = torch.softmax(encoder.logits(ids), -1).numpy()
        found = student.predict(text)
        assert ids[0] == 101
        assert ids[-1] == 102
        assert found.prompt_tokens == len(ids)
        assert np.abs(np.array([found.probabilities[name] for name in LABELS]) - wanted).max() < 0.05


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_one_row_many_rows_and_rows_in_another_order_get_the_same_answers(bundles: Bundles, engine: str) -> None:
    student = load(bundles["q4_0"], engine)
    forth = [row.probabilities for row in student.predict_many(TEXTS)]
    back = [student.predict({"text": text}).probabilities for text in reversed(TEXTS)]
    assert forth == back[::-1]
    assert all(sum(row.values()) == pytest.approx(1) for row in forth)


def test_the_session_keeps_nothing_of_the_text_before(roberta_bundles: Bundles) -> None:
    path = roberta_bundles["q4_0"] / "onnx/model_q4.onnx"
    used = OnnxEncoderSession(path, 1, 64)
    for ids in ([101, 2000, 102], [101, 2000, 2001, 102], [101, 2000, 2001, 102], [101, 2000]):
        assert np.array_equal(used.logits(ids), OnnxEncoderSession(path, 1, 64).logits(ids))


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0"])
def test_the_bundle_holds_what_a_device_needs(minilm_run: Run, minilm_bundles: Bundles, quantization: str) -> None:
    folder = minilm_bundles[quantization]
    bundle = load(folder).bundle
    files = {"onnx": (f"onnx/model_{quantization[:2]}.onnx", 4), "gguf": (f"gguf/model-{quantization}.gguf", None)}
    assert {a.engine: (a.path, a.accuracy_level) for a in bundle.artifacts} == files
    assert all(a.bytes == (folder / a.path).stat().st_size for a in bundle.artifacts)
    assert (bundle.student, bundle.context_tokens, bundle.base["spec"]) == ("small", 512, MINILM)
    assert bundle.parity["numbers"] == {"tensors": 103, "onnx": True, "gguf": True, "max_difference": 0.0}
    assert (bundle.parity["tokens"]["gguf_tokenizer"], bundle.parity["tokens"]["mismatches"]) == ("bert", 0)
    assert [facts["labels_kept"] for facts in bundle.parity["answers"].values()] == [1, 1]
    assert not {"genai_config.json", "generation_config.json"} & set(bundle.files)
    for name in ("tokenizer.json", "vocab.txt", "task.json"):
        assert (folder / name).read_bytes() == (minilm_run[0] / name).read_bytes()
    assert config_of(folder).items() >= config_of(minilm_run[0]).items()
    assert [check.labels_changed for check in verify_bundle(folder).engines.values()] == [0, 0]


@pytest.mark.parametrize(
    ("artifacts", "holds"),
    [
        (
            ("onnx", "gguf"),
            ("onnx, gguf, text-", "ONNX and GGUF hold exactly", "`gguf/model-q4_0.gguf`", "first token's"),
        ),
        (("onnx",), ("onnx, text-", "ONNX holds exactly")),
        (
            ("gguf",),
            ("gguf, text-", "GGUF holds exactly", "other token ids for 0 of 10,", "Pooling `rank` gives"),
        ),
    ],
)
def test_the_card_speaks_of_an_encoder(
    roberta_run: Run, artifacts: tuple[str, ...], holds: tuple[str, ...], tmp_path: Path
) -> None:
    run_export(roberta_run[0], export_section("q4_0", *artifacts), tmp_path / "bundle", silent)
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    for wanted in (*holds, "101 before and 102 after", "3 logits"):
        assert wanted in card
    absent = {"onnx": ("ONNX", "onnxruntime"), "gguf": ("gguf", "llama")}
    foreign = [word for engine, words in absent.items() if engine not in artifacts for word in words]
    for word in (*foreign, "genai", "Answer:", "reasons;"):
        assert word not in card


def test_the_card_of_a_mean_says_how_to_take_it(minilm_bundles: Bundles) -> None:
    card = (minilm_bundles["q4_0"] / "README.md").read_text(encoding="utf-8")
    assert "The logits are the mean of all states, not normalised, through `cls.output`" in card
    assert "Pooling `rank` takes the first token instead of the mean and is wrong here." in card


def test_whatever_writes_is_refused_in_one_line(roberta_bundles: Bundles) -> None:
    student = load(roberta_bundles["q4_0"])
    wishes = (
        lambda: student.predict("snow?", labels=["a", "b"]),
        lambda: student.explain("snow?"),
        lambda: student.generate("snow?"),
        lambda: student.stream("snow?"),
        lambda: student.score("snow?", ["a"]),
    )
    for wish in wishes:
        with pytest.raises(EdgestillError, match="this student is an encoder: it labels and does not write - "):
            wish()
    assert student.predict("snow?").label in LABELS


def test_text_beyond_the_models_context_is_refused(copied_run: Path, tmp_path: Path) -> None:
    manifest.save(copied_run / "task.json", encoder_task(max_text_tokens=500))
    run_export(copied_run, export_section(), tmp_path / "bundle", silent)
    student = load(tmp_path / "bundle")
    assert student.info()["max_tokens"] == 64
    assert student.predict("snow " * 62).prompt_tokens == 64
    with pytest.raises(EdgestillError, match="65 tokens, but the session holds at most 64"):
        student.predict("snow " * 63)


@pytest.mark.parametrize(("built", "other"), [("gguf", "onnx"), ("onnx", "gguf")])
def test_one_artifact_alone_answers_and_the_other_is_refused(
    roberta_run: Run, built: str, other: str, tmp_path: Path
) -> None:
    run_export(roberta_run[0], export_section("q8_0", built), tmp_path / "bundle", silent)
    assert load(tmp_path / "bundle").selfcheck().max_probability_difference < 0.05
    with pytest.raises(UsageError, match=f"engine '{other}' is not in this bundle"):
        load(tmp_path / "bundle", other)


def test_the_command_line_labels_and_verifies(roberta_bundles: Bundles, cli: Any) -> None:
    folder = roberta_bundles["q4_0"]
    answer: subprocess.CompletedProcess[str] = cli("run", folder, "snow?", "--json")
    assert json.loads(answer.stdout)["label"] == load(folder).predict("snow?").label
    refused = cli("run", folder, "snow?", "--explain")
    assert refused.returncode == 1
    assert "it labels and does not write" in refused.stderr
    told = cli("verify", folder).stdout
    assert told.count("0 of 6 golden answers differ") == 2
    assert "ONNX and GGUF hold the same numbers in 41 tensors" in told


def test_a_finished_bundle_is_not_built_again_and_a_foreign_one_is(roberta_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "q4_0"
    built = dict(build_both(roberta_run, tmp_path))["q4_0"]
    first = (built / "bundle.json").read_bytes()
    assert run_export(roberta_run[0], export_section(), folder, silent)[1]
    assert (folder / "bundle.json").read_bytes() == first
    manifest.write_json(folder / "bundle.json", {"schema": "edgestill-bundle/1"})
    assert not run_export(roberta_run[0], export_section(), folder, silent)[1]
    assert load(folder).bundle.student == "small"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"lacks or adds \['encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"lacks or adds \['encoder\.layer\.1"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    ],
)
def test_a_config_of_another_model_is_found(
    copied_run: Path, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = json.loads((copied_run / "config.json").read_text(encoding="utf-8"))
    manifest.write_json(copied_run / "config.json", {**config, **change})
    with pytest.raises(EdgestillError, match=message):
        run_export(copied_run, export_section(), tmp_path / "bundle", silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def test_a_head_for_other_labels_is_found(copied_run: Path, tmp_path: Path) -> None:
    task = encoder_task()
    manifest.save(copied_run / "task.json", dataclasses.replace(task, labels=task.labels[:2]))
    with pytest.raises(EdgestillError, match="the head has 3 outputs, the task 2 labels"):
        run_export(copied_run, export_section(), tmp_path / "bundle", silent)


def test_positions_counted_from_another_row_show_in_the_self_check(roberta_run: Run, tmp_path: Path) -> None:
    """The first row is no tensor of the model, so that equal numbers say nothing about it."""
    folder = dict(build_both(roberta_run, tmp_path))["q4_0"]
    _replace(folder / "onnx/model_q4.onnx", "first_position", lambda value: value - 2)
    assert load(folder).selfcheck().max_probability_difference > 0.05


def test_outputs_in_another_order_are_found_by_the_answers(minilm_run: Run, tmp_path: Path) -> None:
    import torch

    folder, task, tokenizer = (
        dict(build_both(minilm_run, tmp_path))["q8_0"],
        encoder_task(),
        load_tokenizer(tmp_path / "q8_0"),
    )
    with torch.inference_mode():
        by_torch = references(
            lambda ids: minilm_run[1].logits(ids).numpy(), task, tokenizer, [{"text": t} for t in TEXTS]
        )
    path = folder / "onnx/model_q8.onnx"
    gates = answer_gates("onnx", measure(OnnxEncoderSession(path, 1, 64), by_torch, task, tokenizer))
    assert [gate.name for gate in gates if not gate.passed] == []
    _replace(path, "head.out.weight", lambda value: value[::-1])
    _replace(path, "head.out.bias", lambda value: value[::-1])
    gates = answer_gates("onnx", measure(OnnxEncoderSession(path, 1, 64), by_torch, task, tokenizer))
    assert "onnx: labels other than torch's" in [gate.name for gate in gates if not gate.passed]
    with pytest.raises(GateFailed, match=r"onnx/model_q8\.onnx was changed"):
        verify_bundle(folder)


def _replace(path: Path, name: str, change: Any) -> None:
    model = onnx.load_model(str(path))
    tensor = next(i for i in model.graph.initializer if i.name == name)
    value = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    onnx.save_model(model, str(path))


def test_another_process_writes_the_same_bundle(
    minilm_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = tmp_path / "first"
    bundle, _ = run_export(minilm_run[0], export_section("q4_0"), first, silent)
    assert bundle.created == "2023-11-14T22:13:20+00:00"
    script = (
        "import sys; from pathlib import Path; from encoder_runs import export_section, silent\n"
        "from edgestill.export.pack import run_export\n"
        "run_export(Path(sys.argv[1]), export_section('q4_0'), Path(sys.argv[2]), silent)"
    )
    tests = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", script, str(minilm_run[0]), str(tmp_path / "bundle")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": tests})
    files = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert files == {p.relative_to(tmp_path / "bundle") for p in (tmp_path / "bundle").rglob("*") if p.is_file()}
    other = [name for name in files if (first / name).read_bytes() != (tmp_path / "bundle" / name).read_bytes()]
    assert other == []
