"""What the verb of the [optimum] extra refuses before it needs optimum, and where optimum is not installed."""

import json
from pathlib import Path

import pytest

from edgestill.export.optimum_export import export_seq2seq
from edgestill.runtime.errors import MissingPackage, UsageError


def model_folder(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_the_environment_of_build_is_told_what_to_type(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "t5", model_type="t5", is_encoder_decoder=True)
    with pytest.raises(MissingPackage, match=r"optimum-onnx .* own - type: .*torch==2\.13\.0 'edgestill\[optimum\]'"):
        export_seq2seq(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_models_a_missing_one_and_a_folder_that_exists_are_refused(tmp_path: Path) -> None:
    llama = model_folder(tmp_path / "llama", model_type="llama")
    with pytest.raises(UsageError, match="holds a llama model, wanted sequence-to-sequence - edgestill export"):
        export_seq2seq(llama, tmp_path / "out")
    with pytest.raises(UsageError, match=r"no config\.json that can be read"):
        export_seq2seq(tmp_path / "nothing", tmp_path / "out")
    t5 = model_folder(tmp_path / "t5", model_type="t5", is_encoder_decoder=True)
    with pytest.raises(UsageError, match="exists already - name a new folder with --out"):
        export_seq2seq(t5, llama)


def test_optimum_beside_the_transformers_of_build_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "site" / "optimum_onnx-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: optimum-onnx\nVersion: 0.1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(metadata.parent.parent)
    model = model_folder(tmp_path / "t5", model_type="t5", is_encoder_decoder=True)
    with pytest.raises(MissingPackage, match=r"transformers 5\..* optimum-onnx 0\.1\.0 wants one below 4\.58 - type: "):
        export_seq2seq(model, tmp_path / "out")
