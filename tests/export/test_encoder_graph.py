"""The encoder's ONNX graph against torch on the same grid, padded batches, and a file that holds other numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from encoder_runs import Run, config_of, encoder_task
from onnx import numpy_helper
from safetensors.numpy import load_file

from edgestill.distill.student.encoder import Encoder, load_encoder, load_tensors
from edgestill.export import parity
from edgestill.export.bert import read_shape, to_grid
from edgestill.export.grid import Grid
from edgestill.export.onnx_encoder import write_encoder
from edgestill.runtime.errors import GateFailed

LENGTHS = (1, 3, 12, 40, 64)
FLOAT32_ROUNDING = 2e-4  # of logits around 10; a changed bias or a missing term moves them by 1e-2 and more
FLOAT32_ACTIVATIONS = 1


def grid_of(run: Run, quantization: Any) -> Grid:
    return to_grid(config_of(run[0]), load_file(run[0] / "model" / "model.safetensors"), quantization)


def on_the_grid(run: Run, grid: Grid) -> Encoder:
    encoder = load_encoder(run[0] / "model")
    values = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in grid.tensors.items()}
    load_tensors(encoder, values, "the grid")
    return encoder


def opened(grid: Grid, run: Run, path: Path, accuracy_level: int = FLOAT32_ACTIVATIONS) -> Any:
    write_encoder(grid, run[1].shape.pooling, path, accuracy_level)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def rows_of_ids() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[101, *rng.integers(1000, 30000, length - 1).tolist()] for length in LENGTHS]


def alone(session: Any, ids: list[int]) -> np.ndarray:
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    return np.asarray(session.run(["logits"], feeds)[0][0])


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0"])
def test_the_graph_computes_what_torch_computes(encoder_run: Run, quantization: str, tmp_path: Path) -> None:
    grid = grid_of(encoder_run, quantization)
    session, model = opened(grid, encoder_run, tmp_path / "m.onnx"), on_the_grid(encoder_run, grid)
    for ids in rows_of_ids():
        with torch.inference_mode():
            wanted = model.logits(ids).numpy()
        assert np.abs(alone(session, ids) - wanted).max() < FLOAT32_ROUNDING
        assert np.ptp(wanted) > 0.05  # else nothing is told apart


@pytest.mark.parametrize("accuracy_level", [FLOAT32_ACTIVATIONS, 4])
def test_padding_on_the_right_changes_nothing(encoder_run: Run, accuracy_level: int, tmp_path: Path) -> None:
    session = opened(grid_of(encoder_run, "q4_0"), encoder_run, tmp_path / "m.onnx", accuracy_level)
    rows = rows_of_ids()
    ids, mask = np.full((len(rows), max(LENGTHS)), 2000), np.zeros((len(rows), max(LENGTHS)), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    together = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
    assert np.abs(together - np.array([alone(session, row) for row in rows])).max() < FLOAT32_ROUNDING


def test_the_file_is_as_small_as_the_grid_says(minilm_run: Run, tmp_path: Path) -> None:
    grid = grid_of(minilm_run, "q4_0")
    opened(grid, minilm_run, tmp_path / "m.onnx")
    size_bytes = grid.parameters * grid.bits_per_weight / 8
    assert size_bytes < (tmp_path / "m.onnx").stat().st_size < size_bytes * 1.01
    kinds = {name: tensor.kind for name, tensor in grid.tensors.items()}
    assert sum(kind == "q4_0" for kind in kinds.values()) == 36
    assert [name for name, kind in kinds.items() if kind == "q8_0"] == ["embeddings.word_embeddings.weight"]
    assert kinds["head.out.weight"] == kinds["embeddings.position_embeddings.weight"] == "f32"


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0"])
def test_the_file_read_back_holds_the_grids_numbers(encoder_run: Run, quantization: str, tmp_path: Path) -> None:
    grid, path = grid_of(encoder_run, quantization), tmp_path / "m.onnx"
    opened(grid, encoder_run, path)
    facts = parity.check_same_numbers(grid, {"onnx": (path, parity.read_onnx_encoder)})
    assert facts == {"tensors": len(grid.tensors), "onnx": True, "max_difference": 0.0}


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("embeddings.word_embeddings.weight.codes", r"embeddings\.word_embeddings\.weight"),
        ("layer.1.attention.self.query.weight+", r"layer\.1\.attention\.self\.value\.weight"),
        ("layer.0.output.dense.weight.scales_f16", r"layer\.0\.output\.dense\.weight"),
        ("layer.1.intermediate.dense.bias", r"layer\.1\.intermediate\.dense\.bias"),
        ("embeddings.position_embeddings.weight", r"embeddings\.position_embeddings\.weight"),
        ("embeddings.LayerNorm.weight", r"embeddings\.LayerNorm\.weight"),
        ("head.out.bias", r"head\.out\.bias"),
    ],
)
def test_one_changed_byte_in_the_file_is_found(roberta_run: Run, part: str, named: str, tmp_path: Path) -> None:
    grid, path = grid_of(roberta_run, "q4_0"), tmp_path / "m.onnx"
    opened(grid, roberta_run, path)
    model = onnx.load_model(str(path))
    changed = next(i for i in model.graph.initializer if part in i.name)
    data = bytearray(changed.raw_data)
    data[-1] ^= 1
    changed.raw_data = bytes(data)
    onnx.save_model(model, str(path))
    with pytest.raises(GateFailed, match=f"other numbers than the grid in .*{named}"):
        parity.check_same_numbers(grid, {"onnx": (path, parity.read_onnx_encoder)})


def test_a_tensor_that_is_not_in_the_file_is_missed(roberta_run: Run, tmp_path: Path) -> None:
    grid, path = grid_of(roberta_run, "q4_0"), tmp_path / "m.onnx"
    opened(grid, roberta_run, path)
    model = onnx.load_model(str(path))
    dense = next(i for i in model.graph.initializer if i.name == "head.dense.bias")
    dense.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(dense), "another"))
    onnx.save_model(model, str(path))
    with pytest.raises(GateFailed, match=r"other tensors than the grid: \['head\.dense\.bias'\]"):
        parity.check_same_numbers(grid, {"onnx": (path, parity.read_onnx_encoder)})


def test_the_longest_text_fills_the_position_table(roberta_run: Run, tmp_path: Path) -> None:
    grid = grid_of(roberta_run, "q4_0")
    session = opened(grid, roberta_run, tmp_path / "m.onnx")
    assert read_shape(grid.config).context == 64 == encoder_task().max_text_tokens + 4
    assert alone(session, [101] * 64).shape == (3,)
    with pytest.raises(Exception, match=r"[Ss]kip|dimension"):
        alone(session, [101] * 65)
