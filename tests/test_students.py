"""Several students of one recipe, from rows to report: an encoder, a decoder and one cut in half share annotations."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgestill.export.gguf_encoder import read_gguf_encoder
from edgestill.export.grid import quantize
from edgestill.export.parity import read_gguf, read_onnx, read_onnx_encoder
from edgestill.runtime import load


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_rows: Any, tiny_base: Path, tiny_encoder: Path, cli: Any
) -> Path:
    """A finished build of three students."""
    folder = tmp_path_factory.mktemp("students")
    tiny_rows(folder)
    students = f"""
  - {{name: minilm, base: {tiny_encoder}, kind: encoder, train: {{learning_rate: 0.003, epochs: 6}}}}
  - {{name: llama, base: {tiny_base}, lora: {{r: 8, alpha: 32}}, train: {{learning_rate: 0.01, epochs: 4}}}}
  - {{name: half, base: {tiny_base}, layers: 1, train: {{learning_rate: 0.01, epochs: 4}}}}
"""
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8").partition("student:")[0]
    recipe.write_text(text + "student:" + students + "train: {batch_rows: 8}\n", encoding="utf-8")
    done = cli("build", "recipe.yaml", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "table.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run" / "report" / "report.json").read_text(encoding="utf-8")))


def test_every_student_has_its_bundle_and_its_rows_in_one_report(run: Path) -> None:
    names = [system["name"] for system in report_of(run)["systems"]]
    assert len(set(names)) == len(names)
    assert [name for name in names if "ONNX" in name] == [f"{s} ONNX q4_0" for s in ("minilm", "llama", "half")]
    assert [name for name in names if "GGUF" in name] == [f"{s} GGUF q4_0" for s in ("minilm", "llama", "half")]
    assert names.count("floor") == names.count("teacher") == 1
    assert [name for name in names if "base" in name] == ["llama base"]  # the others cannot answer untrained
    assert report_of(run)["choice"] is not None


def test_the_encoder_is_used_like_any_student(run: Path, cli: Any) -> None:
    student = load(run / "run" / "minilm" / "bundle")
    answer = student.predict("a frog next to a lime")
    assert answer.label in ("red", "green")
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert student.selfcheck().labels_changed == 0
    assert cli("verify", run / "run" / "minilm" / "bundle").returncode == 0
    said = cli("run", run / "run" / "minilm" / "bundle", "a frog next to a lime")
    assert said.stdout.startswith(answer.label)
    refused = cli("run", run / "run" / "minilm" / "bundle", "a frog", "--explain")
    assert refused.returncode == 1
    assert "encoder" in refused.stderr


def test_a_cut_student_is_half_as_deep(run: Path) -> None:
    layers = [
        json.loads((run / "run" / name / "bundle" / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
        for name in ("llama", "half")
    ]
    assert layers == [2, 1]


@pytest.mark.parametrize("name", ["minilm", "llama", "half"])
def test_both_files_hold_the_codes_that_training_left_and_not_the_nearest_ones(run: Path, name: str) -> None:
    student, bundle = run / "run" / name / "student", run / "run" / name / "bundle"
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    stored = load_file(student / "grid" / "grid.safetensors")
    readers = (read_onnx_encoder, read_gguf_encoder) if name == "minilm" else (read_onnx, read_gguf)
    files = (next((bundle / "onnx").glob("*.onnx")), next((bundle / "gguf").glob("*.gguf")))
    for read, path in zip(readers, files, strict=True):
        values = dict(read(path, config))
        for tensor in (key.removesuffix(".codes") for key in stored if key.endswith(".codes")):
            codes, scales = stored[f"{tensor}.codes"], stored[f"{tensor}.scales"]
            wanted = codes.reshape(*scales.shape, 32) * scales[..., None].astype(np.float32)
            assert np.array_equal(values[tensor], wanted.reshape(codes.shape))
            again = quantize(tensor, values[tensor], "q4_0")
            is_table = codes.min() < -8
            assert is_table or not np.array_equal(again.codes, codes)  # nobody has rounded to nearest


def test_a_second_build_does_nothing_again(run: Path, cli: Any) -> None:
    done = cli("build", "recipe.yaml", "--out", "run", cwd=run)
    assert done.returncode == 0
    assert done.stderr.count("done before") == 1 + 3 + 3 + 1
    assert done.stdout == (run / "table.txt").read_text(encoding="utf-8")


def test_one_student_removed_leaves_the_others_trained(run: Path, tmp_path: Path, cli: Any) -> None:
    shutil.copytree(run, tmp_path / "copy")
    recipe = tmp_path / "copy" / "recipe.yaml"
    lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
    recipe.write_text("".join(line for line in lines if "name: half" not in line), encoding="utf-8")
    assert cli("annotate", "recipe.yaml", "--out", "run", cwd=tmp_path / "copy").returncode == 0
    done = cli("train", "recipe.yaml", "--out", "run", cwd=tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done before") == 2
