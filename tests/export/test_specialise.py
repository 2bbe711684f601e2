"""The graph that only labels beside the one that also writes: the same numbers and answers from a smaller file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgestill.distill.recipe import ExportSection, read_recipe
from edgestill.export import parity
from edgestill.export.architecture import EMBEDDING, FINAL_NORM, HEAD, exact_norms
from edgestill.export.grid import Grid, GridTensor
from edgestill.export.onnx_labels import cut_head, write_labels
from edgestill.export.onnx_writer import write_onnx
from edgestill.runtime import load, manifest
from edgestill.runtime.bundle import load_bundle
from edgestill.runtime.errors import EdgestillError, GateFailed, UsageError
from edgestill.runtime.onnx_session import PREFILL_CHUNK_TOKENS, OnnxEncoderSession, OnnxSession
from edgestill.runtime.stages import Stages

VOCABULARY, LONGEST_TOKENS = 128, 80
ANSWERS = [70, 5, 9]
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 32},
    "gemma3_text": {
        "head_dim": 256,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
MAX_ERROR = 1e-5  # of logits: kernels for one row and for many add in another order


def test_specialise_wants_a_student_that_could_do_more(tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text() + "export: {specialise: true}\n"
    tiny_recipe.write_text(text)
    assert read_recipe(tiny_recipe).export.specialise
    tiny_recipe.write_text(text.replace("student: {", "student: {kind: encoder, "))
    with pytest.raises(UsageError, match="an encoder's graph only labels anyway"):
        read_recipe(tiny_recipe)


@pytest.fixture(scope="module", params=list(MODELS))
def grid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """Small random weights; heads tied and not, one rope and two, with a window that prompts outgrow."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgestill.export.weights import to_grid

    torch.manual_seed(3)
    config = AutoConfig.for_model(request.param, **{**SIZES, **MODELS[request.param]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.15)
    folder = tmp_path_factory.mktemp("grid")
    model.save_pretrained(folder)
    return exact_norms(to_grid(model, json.loads((folder / "config.json").read_text(encoding="utf-8")), "q4_0"))


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(3, VOCABULARY, count).tolist() for count in (1, 7, 23, 48, LONGEST_TOKENS)]


@pytest.mark.parametrize("level", [0, 4])
def test_the_cut_graph_gives_the_logits_of_the_labels(grid: Grid, tmp_path: Path, level: int) -> None:
    whole, cut = tmp_path / "model.onnx", tmp_path / "labels.onnx"
    write_onnx(grid, whole, level)
    write_labels(grid, ANSWERS, LONGEST_TOKENS, cut, level)
    general, labels = OnnxSession(whole, 1, LONGEST_TOKENS), OnnxEncoderSession(cut, 1, LONGEST_TOKENS)
    one_piece = [ids for ids in prompts() if level == 0 or len(ids) <= PREFILL_CHUNK_TOKENS]
    for ids in one_piece:
        general.forget()
        wanted = general.logits(ids)[ANSWERS]
        assert np.ptp(wanted) > 0.01
        assert np.allclose(labels.logits(ids), wanted, rtol=0, atol=MAX_ERROR)


def test_texts_padded_to_the_right_answer_as_they_do_alone(grid: Grid, tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "labels.onnx"
    write_labels(grid, ANSWERS, LONGEST_TOKENS, path, accuracy_level=0)
    alone, lengths = OnnxEncoderSession(path, 1, LONGEST_TOKENS), [len(ids) for ids in prompts()]
    padded = np.full((len(lengths), max(lengths)), 99, np.int64)
    mask: NDArray[np.int64] = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    for row, ids in zip(padded, prompts(), strict=True):
        row[: len(ids)] = ids
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"input_ids": padded, "attention_mask": mask})[0]
    assert np.allclose(found, [alone.logits(ids) for ids in prompts()], rtol=0, atol=1e-5)


def test_only_head_rotations_and_state_are_left_out(grid: Grid, tmp_path: Path) -> None:
    whole, cut = tmp_path / "model.onnx", tmp_path / "labels.onnx"
    write_onnx(grid, whole)
    write_labels(grid, ANSWERS, LONGEST_TOKENS, cut)
    assert cut.stat().st_size < whole.stat().st_size
    graph = onnx.load_model(str(cut)).graph
    assert [i.name for i in graph.input] == ["input_ids", "attention_mask"]
    assert [o.name for o in graph.output] == ["logits"]
    kept, head = dict(parity.read_onnx(cut, cut_head(grid, ANSWERS).config)), grid.tensors.get(HEAD)
    rows = (head or grid.tensors[EMBEDDING]).dequantize()[ANSWERS]
    assert np.array_equal(kept.pop(HEAD), rows)
    assert set(kept) == set(grid.tensors) - {HEAD}
    assert all(np.array_equal(values, grid.tensors[name].dequantize()) for name, values in kept.items())


def test_a_prompt_past_the_last_rotation_is_refused(grid: Grid, tmp_path: Path) -> None:
    write_labels(grid, ANSWERS, LONGEST_TOKENS, tmp_path / "labels.onnx")
    session = OnnxEncoderSession(tmp_path / "labels.onnx", 1, VOCABULARY)
    with pytest.raises(Exception, match="GroupQueryAttention"):
        session.logits([5] * (LONGEST_TOKENS + 1))


def test_specialise_wants_the_file_that_writes_beside_it() -> None:
    assert not ExportSection().specialise
    assert ExportSection(specialise=True).artifacts == ("onnx", "gguf")
    with pytest.raises(ValueError, match="add onnx to artifacts"):
        ExportSection(artifacts=("gguf",), specialise=True)


@pytest.fixture(scope="module")
def specialised(tmp_path_factory: pytest.TempPathFactory, tiny_rows: Callable[[Path], Path]) -> Path:
    """A tiny student's bundle with both ONNX files."""
    folder = tmp_path_factory.mktemp("specialised")
    recipe = tiny_rows(folder)
    with recipe.open("a", encoding="utf-8") as file:
        file.write("export: {artifacts: [onnx], specialise: true}\n")
    stages = Stages(recipe, folder / "run")
    stages.annotate()
    stages.train()
    stages.export()
    return folder / "run/bundle"


def test_a_bundle_lists_both_files_and_measured_both(specialised: Path) -> None:
    bundle = load_bundle(specialised)
    general, labels = bundle.artifacts
    assert (general.engine, general.path) == ("onnx", "onnx/model_q4.onnx")
    assert (labels.engine, labels.path) == ("onnx-labels", "onnx/labels_q4.onnx")
    assert general.accuracy_level == labels.accuracy_level == 4
    assert labels.bytes < general.bytes
    assert set(bundle.parity["answers"]) == {"onnx", "onnx-labels"}


def test_both_files_label_every_test_row_alike(specialised: Path) -> None:
    general, labels = load(specialised, "onnx"), load(specialised)
    assert labels.artifact.engine == "onnx-labels"
    rows = list(manifest.read_jsonl(specialised / "reference" / "test.jsonl"))
    for row in rows:
        wanted, found = general.predict_text(row["text"]), labels.predict_text(row["text"])
        assert found.label == wanted.label
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)
    assert len({general.predict_text(row["text"]).label for row in rows}) == 2


def test_what_writes_opens_the_general_file_and_only_then(specialised: Path, tmp_path: Path) -> None:
    general = load(specialised, "onnx")
    alone = Path(shutil.copytree(specialised, tmp_path / "bundle"))
    (alone / "onnx/model_q4.onnx").unlink()
    assert load(alone).predict("a cherry").label in ("red", "green")
    with pytest.raises(EdgestillError, match=r"cannot open .*model_q4\.onnx"):
        load(alone).generate("a cherry")
    student, prompt = load(specialised), "a cherry\nAnswer:"
    assert student.generate(prompt) == general.generate(prompt)
    assert student.score(prompt, [" red", " green"]) == general.score(prompt, [" red", " green"])
    assert student.explain("a cherry") == general.explain("a cherry")
    words = ["red", "a lamp"]
    assert student.predict("a cherry", words).probabilities == general.predict("a cherry", words).probabilities
    assert student.predict("a cherry").probabilities == load(specialised).predict("a cherry").probabilities


def test_numbers_that_do_not_come_back_from_the_file_fail_the_build(grid: Grid, tmp_path: Path) -> None:
    lost = GridTensor("f32", values=np.full_like(grid.tensors[FINAL_NORM].dequantize(), np.nan))
    with pytest.raises(GateFailed, match=r"other numbers than the grid in model\.norm"):
        write_labels(
            Grid(grid.config, {**grid.tensors, FINAL_NORM: lost}), ANSWERS, LONGEST_TOKENS, tmp_path / "labels.onnx"
        )


def test_a_changed_row_of_the_cut_head_is_found(grid: Grid, tmp_path: Path) -> None:
    write_labels(grid, ANSWERS, LONGEST_TOKENS, tmp_path / "labels.onnx")
    other = cut_head(grid, [*ANSWERS[:-1], ANSWERS[-1] + 1])
    with pytest.raises(GateFailed, match=r"other numbers than the grid in lm_head\.weight"):
        parity.check_same_numbers(other, {"onnx": (tmp_path / "labels.onnx", parity.read_onnx)})
