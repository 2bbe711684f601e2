"""What `load` says about a folder that is not a bundle, before it opens anything; what the runtime imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgestill.runtime import EdgestillError, load


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgestillError, match=r"no folder .*nowhere - name a bundle"):
        load(tmp_path / "nowhere")


def test_a_file_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(EdgestillError, match="no folder"):
        load(tmp_path / "model.gguf")


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(EdgestillError, match=r"has no bundle\.json: it is not a whole bundle - type: edgestill build"):
        load(str(tmp_path))


def test_the_folder_of_a_run_is_told_from_its_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}", encoding="utf-8")
    with pytest.raises(EdgestillError) as caught:
        load(tmp_path)
    assert caught.value.hint == f"did you mean {tmp_path / 'bundle'}?"


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "edgestill-bundle/0"}', '{"schema": "edgestill-bundle/1"}'])
def test_a_manifest_that_is_torn_old_or_short_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"bundle\.json"):
        load(tmp_path)


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_runtime_brings_no_training_package_along() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'openai', 'onnxruntime', 'llama_cpp'}"
    assert python(f"import sys, edgestill.runtime; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_answering_asks_no_hub_and_imports_no_training_package(encoder_bundle: Path, engine: str) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'openai', 'huggingface_hub'}"
    use = f"from edgestill.runtime import load; load({str(encoder_bundle)!r}, {engine!r}).predict('rain')"
    assert python(f"import sys; {use}; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_runtime_imports_in_less_than_300_ms_beyond_onnxruntime() -> None:
    code = "import time; t = time.process_time(); import onnxruntime; u = time.process_time()"
    seconds = [
        float(python(f"{code}; from edgestill.runtime import load; print(time.process_time() - u)")) for _ in range(3)
    ]
    assert min(seconds) < 0.3  # CPU time of this process: what else the machine does is not in it
