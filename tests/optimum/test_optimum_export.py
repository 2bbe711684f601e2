"""A tiny T5 through optimum's exporter, opened by plain onnxruntime; run by `make test-optimum` where optimum is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edgestill.export.optimum_export import export_seq2seq
from edgestill.runtime.errors import EdgestillError, GateFailed, UsageError
from edgestill.runtime.verbs_export import export_optimum

pytestmark = pytest.mark.optimum
LAYERS, HEADS, HEAD_SIZE = 2, 4, 16


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": HEAD_SIZE, "d_ff": 128, "num_layers": LAYERS, "num_heads": HEADS}
    model = T5ForConditionalGeneration(T5Config(vocab_size=512, decoder_start_token_id=0, **sizes))
    with torch.no_grad():
        model.shared.weight.mul_(0.2)
    folder = tmp_path_factory.mktemp("t5")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder written, and what the verb said."""
    folder = tmp_path_factory.mktemp("exported") / "t5"
    app = typer.Typer()
    app.command()(export_optimum)
    done = CliRunner().invoke(app, [str(t5), "--out", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder, done.stdout


def torch_logits(model: Path, read: Any, written: Any) -> Any:
    import torch
    from transformers import T5ForConditionalGeneration

    loaded = T5ForConditionalGeneration.from_pretrained(model).eval()
    with torch.inference_mode():
        return loaded(input_ids=torch.from_numpy(read), decoder_input_ids=torch.from_numpy(written)).logits.numpy()


def test_onnxruntime_gives_torchs_logits_token_by_token(t5: Path, exported: tuple[Path, str]) -> None:
    import onnxruntime

    draw = np.random.default_rng(7)
    read, written = draw.integers(3, 512, (2, 9)), draw.integers(3, 512, (2, 5))
    encoder, decoder = (
        onnxruntime.InferenceSession(exported[0] / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder_model", "decoder_model_merged")
    )
    mask = np.ones_like(read)
    states = encoder.run(["last_hidden_state"], {"input_ids": read, "attention_mask": mask})[0]
    names = [output.name for output in decoder.get_outputs()]
    empty = np.zeros((2, HEADS, 0, HEAD_SIZE), np.float32)
    kept = {i.name: empty for i in decoder.get_inputs() if i.name.startswith("past_key_values")}
    assert len(kept) == 4 * LAYERS
    found = []
    for step in range(written.shape[1]):
        feeds = {"input_ids": written[:, step : step + 1], "encoder_hidden_states": states}
        feeds |= {"encoder_attention_mask": mask, "use_cache_branch": np.array([step > 0]), **kept}
        values = dict(zip(names, decoder.run(names, feeds), strict=True))
        found.append(values["logits"][:, 0])
        for name in kept:
            present = values[name.replace("past_key_values", "present")]
            if step == 0 or ".decoder." in name:  # what was read is computed once
                kept[name] = present
    assert np.abs(np.stack(found, 1) - torch_logits(t5, read, written)).max() < 1e-4


def test_the_verb_names_files_and_difference_and_what_to_type_next(exported: tuple[Path, str]) -> None:
    folder, said = exported
    for name in ("encoder_model.onnx", "decoder_model_merged.onnx", "config.json"):
        assert f"{folder / name}  " in said
    assert "logits differ from torch's by " in said
    following = said.strip().splitlines()[-1].removeprefix("Next: python ")
    done = subprocess.run(f"{sys.executable} {following}", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_weights_that_are_not_the_graphs_are_a_failed_gate(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """optimum writes another model's files: the gate has to see it."""
    from optimum.exporters import onnx
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config.from_pretrained(t5)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "other")
    write = onnx.main_export
    monkeypatch.setattr(onnx, "main_export", lambda _, folder, **more: write(str(tmp_path / "other"), folder, **more))
    with pytest.raises(GateFailed, match="logits of onnxruntime and torch differ by"):
        export_seq2seq(t5, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_what_cannot_be_written_is_refused_in_one_line(t5: Path, tmp_path: Path) -> None:
    def changed(**changes: Any) -> Path:
        folder = Path(shutil.copytree(t5, tmp_path / f"model{len(list(tmp_path.iterdir()))}"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        return folder

    with pytest.raises(UsageError, match="writes no whisper model that reads and writes text"):
        export_seq2seq(changed(model_type="whisper"), tmp_path / "out")
    with pytest.raises(UsageError, match="writes no nonesuch model"):
        export_seq2seq(changed(model_type="nonesuch"), tmp_path / "out")
    broken = changed()
    (broken / "model.safetensors").unlink()
    with pytest.raises(EdgestillError, match="optimum could not write"):
        export_seq2seq(broken, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
