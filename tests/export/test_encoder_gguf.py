"""The encoder's GGUF file: llama.cpp's trunk and our head against torch, its numbers, its vocabulary, foreign files."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import tokenizers
import torch
from encoder_runs import LABELS, TEXTS, Run, config_of, encoder_task
from safetensors.numpy import load_file

from edgestill.distill.student.encoder import Encoder, load_encoder, load_tensors
from edgestill.export import parity
from edgestill.export.bert import POSITIONS, WORDS, gguf_name, read_shape, to_grid, without_unread_positions
from edgestill.export.encoder_tokenizer import add_tokenizer
from edgestill.export.gguf_encoder import read_gguf_encoder, write_gguf_encoder
from edgestill.export.grid import Grid, quantize
from edgestill.export.tokenizer_writer import mismatches
from edgestill.runtime.errors import EdgestillError, GateFailed
from edgestill.runtime.gguf_file import read_float32
from edgestill.runtime.gguf_session import GgufEncoderSession
from edgestill.runtime.task import load_tokenizer

LENGTHS = (1, 3, 12, 40, 64)
# Relative RMS error of the last hidden states in float32. llama.cpp's GELU is the one with tanh, out of a table of
# float16; with that GELU in torch's place what is left is the order of sums.
GELU_COST, SUMS_COST = 3e-3, 5e-4
PROBABILITY_COST = 0.02
GRIDS = ("f32", "q8_0", "q4_0")


def grid_of(run: Run, quantization: Any) -> Grid:
    config, weights = config_of(run[0]), load_file(run[0] / "model" / "model.safetensors")
    grid = without_unread_positions(to_grid(config, weights, quantization))
    if quantization == "f32":
        grid.tensors[WORDS] = quantize(WORDS, weights[WORDS], "f32")
    return grid


def on_the_grid(run: Run, grid: Grid) -> Encoder:
    encoder = load_encoder(run[0] / "model")
    values = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in grid.tensors.items()}
    load_tensors(encoder, values, "the grid")
    return encoder


def vocabulary_of(folder: Path) -> Callable[[Any], str]:
    return lambda writer: add_tokenizer(writer, folder, config_of(folder), encoder_task(), TEXTS)


def written(grid: Grid, run: Run, path: Path) -> Path:
    write_gguf_encoder(grid, run[1].shape.pooling, list(LABELS), "talk", vocabulary_of(run[0]), path)
    return path


def rows_of_ids() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[101, *rng.integers(1000, 30000, length - 1).tolist()] for length in LENGTHS]


def computed(encoder: Encoder, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(hidden states (T, K), logits (L,)) in torch."""
    states: list[np.ndarray] = []
    hook = encoder.trunk.register_forward_hook(lambda _m, _i, out: states.append(out.last_hidden_state[0].numpy()))
    with torch.inference_mode():
        logits = encoder.logits(ids).numpy()
    hook.remove()
    return states[0], logits


def ggml_gelu(x: torch.Tensor) -> torch.Tensor:
    """ggml's GGML_GELU_FP16: tanh's approximation, looked up by and stored as float16, within -10 to 10."""
    table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, table))


def relative_rms(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def chances(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


@pytest.fixture
def roberta_file(roberta_run: Run, tmp_path: Path) -> Path:
    return written(grid_of(roberta_run, "q8_0"), roberta_run, tmp_path / "m.gguf")


def test_in_float32_only_the_gelu_differs_from_torchs(encoder_run: Run, tmp_path: Path) -> None:
    grid = grid_of(encoder_run, "f32")
    session = GgufEncoderSession(written(grid, encoder_run, tmp_path / "m.gguf"), 1, 64)
    model = on_the_grid(encoder_run, grid)
    own = [computed(model, ids) for ids in rows_of_ids()]
    for layer in model.trunk.encoder.layer:
        layer.intermediate.intermediate_act_fn.register_forward_hook(
            lambda _module, inputs, _output: ggml_gelu(*inputs)
        )
    for ids, (hidden, logits) in zip(rows_of_ids(), own, strict=True):
        found = session._hidden(ids)
        assert relative_rms(found, hidden) < GELU_COST
        assert relative_rms(found, computed(model, ids)[0]) < SUMS_COST
        assert np.abs(chances(session.logits(ids)) - chances(logits)).max() < PROBABILITY_COST / 20


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
def test_the_head_gives_the_probabilities_of_torch(encoder_run: Run, quantization: str, tmp_path: Path) -> None:
    grid = grid_of(encoder_run, quantization)
    session = GgufEncoderSession(written(grid, encoder_run, tmp_path / "m.gguf"), 1, 64)
    model = on_the_grid(encoder_run, grid)
    for ids in rows_of_ids():
        wanted = computed(model, ids)[1]
        assert np.abs(chances(session.logits(ids)) - chances(wanted)).max() < PROBABILITY_COST
        assert np.ptp(wanted) > 0.05  # else nothing is told apart


def test_a_text_is_answered_alike_whatever_came_before(roberta_file: Path) -> None:
    used = GgufEncoderSession(roberta_file, 1, 64)
    for ids in ([101, 2000, 102], [101, 2000, 2001, 102], [101, 2000, 2001, 102], [101, 2000]):
        assert np.array_equal(used.logits(ids), GgufEncoderSession(roberta_file, 1, 64).logits(ids))
    used.close()


def test_llama_cpps_own_ranking_gives_the_logits_where_the_first_token_is_pooled(roberta_file: Path) -> None:
    llama = llama_cpp.Llama(str(roberta_file), n_ctx=64, embedding=True, pooling_type=4, verbose=False)
    for ids in rows_of_ids():
        tokens, wanted = (llama_cpp.llama_token * len(ids))(*ids), (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        batch.logits = wanted
        assert llama_cpp.llama_encode(llama.ctx, batch) == 0
        found = np.array(llama_cpp.llama_get_embeddings_seq(llama.ctx, 0)[: len(LABELS)])
        assert np.abs(found - GgufEncoderSession(roberta_file, 1, 64).logits(ids)).max() < 1e-4
    llama.close()


@pytest.mark.parametrize("quantization", GRIDS)
def test_the_file_read_back_holds_the_grids_numbers(encoder_run: Run, quantization: str, tmp_path: Path) -> None:
    grid = grid_of(encoder_run, quantization)
    files = {"gguf": (written(grid, encoder_run, tmp_path / "m.gguf"), read_gguf_encoder)}
    facts = parity.check_same_numbers(grid, files)
    assert facts == {"tensors": len(grid.tensors), "gguf": True, "max_difference": 0.0}


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.attention.self.value.weight",
        "encoder.layer.0.attention.output.LayerNorm.weight",
        "encoder.layer.0.output.dense.weight",
        "head.dense.weight",
        "head.out.bias",
    ],
)
def test_one_changed_byte_in_the_file_is_found(roberta_run: Run, roberta_file: Path, name: str) -> None:
    tensor = next(t for t in gguf.GGUFReader(roberta_file, "r+").tensors if t.name == gguf_name(name))
    tensor.data.reshape(-1).view(np.uint8)[-1] ^= 1
    tensor.data.flush()
    with pytest.raises(GateFailed, match=f"other numbers than the grid in {name}"):
        parity.check_same_numbers(grid_of(roberta_run, "q8_0"), {"gguf": (roberta_file, read_gguf_encoder)})


def test_positions_that_no_token_reads_are_left_out(roberta_run: Run, roberta_file: Path) -> None:
    shape = read_shape(config_of(roberta_run[0]))
    table = next(t for t in gguf.GGUFReader(roberta_file).tensors if t.name == "position_embd.weight")
    assert (shape.first_position, shape.context) == (2, 64)
    assert [int(n) for n in table.shape] == [shape.width, shape.context]
    stored = grid_of(roberta_run, "q8_0").tensors[POSITIONS].dequantize()
    assert not stored[: shape.first_position].any()
    assert stored[shape.first_position :].any(-1).all()


def test_llama_cpp_reads_wordpiece_as_the_device_does(minilm_run: Run, tmp_path: Path) -> None:
    path = written(grid_of(minilm_run, "q4_0"), minilm_run, tmp_path / "m.gguf")
    reference, task = load_tokenizer(minilm_run[0]), encoder_task()
    assert mismatches(path, reference, parity.tokenizer_probes(TEXTS)) == []
    session = GgufEncoderSession(path, 1, 64)
    for text in TEXTS:
        assert session.llama.tokenize(text.encode(), add_bos=True) == task.encode(reference, text)


def trained(kind: str, folder: Path) -> dict[str, Any]:
    """A tokenizer of `kind` that has learnt the texts; the config of a model for it."""
    split, special = tokenizers.pre_tokenizers, ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "cased":
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="<unk>"))
        made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
        made.pre_tokenizer = split.BertPreTokenizer()
        trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    elif kind == "words":
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = split.Whitespace()
        trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    else:
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = split.ByteLevel(add_prefix_space=kind == "bytes after a blank")
        alphabet = split.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    made.train_from_iterator([*TEXTS, *(text.upper() for text in TEXTS)], trainer)
    made.save(str(folder / "tokenizer.json"))
    return {"vocab_size": made.get_vocab_size() + 4, "type_vocab_size": 1}


@pytest.mark.parametrize(
    ("kind", "named"),
    [("cased", "bert"), ("bytes", "gpt2"), ("bytes after a blank", "no_vocab"), ("words", "no_vocab")],
)
def test_other_vocabularies_are_written_or_left_out_by_name(kind: str, named: str, tmp_path: Path) -> None:
    config, probes = trained(kind, tmp_path), [*TEXTS, *(text.upper() for text in TEXTS), "naïve 你好 don't"]
    path, task = tmp_path / "v.gguf", encoder_task(bos_token_id=0, eos_token_id=2)
    writer = gguf.GGUFWriter(path, "bert")
    assert add_tokenizer(writer, tmp_path, config, task, probes) == named
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.model"].contents() == named
    if named != "no_vocab":
        reference = load_tokenizer(tmp_path)
        assert mismatches(path, reference, probes) == []
        vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        assert vocabulary.tokenize(b"dim it", add_bos=True) == task.encode(reference, "dim it")


def test_a_file_without_vocabulary_answers_token_ids(roberta_run: Run, roberta_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "ids.gguf"
    (tmp_path / "words").mkdir()
    trained("words", tmp_path / "words")
    config = config_of(roberta_run[0])
    write_gguf_encoder(
        grid_of(roberta_run, "q8_0"),
        "cls",
        list(LABELS),
        "talk",
        lambda writer: add_tokenizer(writer, tmp_path / "words", config, encoder_task(), TEXTS),
        path,
    )
    for ids in rows_of_ids():
        wanted = GgufEncoderSession(roberta_file, 1, 64).logits(ids)
        assert np.array_equal(GgufEncoderSession(path, 1, 64).logits(ids), wanted)


def test_a_file_that_is_not_ours_is_refused_in_one_line(roberta_run: Run, roberta_file: Path, tmp_path: Path) -> None:
    grid, path = grid_of(roberta_run, "q8_0"), tmp_path / "another.gguf"
    for pooling, head in (("mean", r"cls\.bias"), ("last", r"cls\.bias")):
        write_gguf_encoder(grid, pooling, list(LABELS), "talk", vocabulary_of(roberta_run[0]), path)
        with pytest.raises(EdgestillError, match=rf"has pooling {pooling} and the head \['{head}'.* - type: edgestill"):
            GgufEncoderSession(path, 1, 64)
    path.write_bytes(b"no GGUF, and long enough for a header")
    with pytest.raises(EdgestillError, match=r"llama\.cpp cannot open"):
        GgufEncoderSession(path, 1, 64)
    with pytest.raises(EdgestillError, match="is not a GGUF file"):
        read_float32(path, ["cls.bias"])
    for size_bytes in (40, roberta_file.stat().st_size - 32):
        path.write_bytes(roberta_file.read_bytes()[:size_bytes])
        with pytest.raises(EdgestillError, match="is not a whole GGUF file"):
            read_float32(path, [tensor.name for tensor in gguf.GGUFReader(roberta_file).tensors][-4:])
    with pytest.raises(EdgestillError, match=r"token_embd\.weight has type 8, wanted 0"):
        read_float32(roberta_file, ["token_embd.weight"])


def test_the_device_reads_what_the_gguf_package_reads(encoder_run: Run, tmp_path: Path) -> None:
    path = written(grid_of(encoder_run, "q4_0"), encoder_run, tmp_path / "m.gguf")
    wanted = {t.name: t.data for t in gguf.GGUFReader(path).tensors if t.tensor_type == gguf.GGMLQuantizationType.F32}
    found = read_float32(path, wanted)
    assert set(found) == set(wanted)
    assert len(wanted) > 20
    for name, values in wanted.items():
        assert np.array_equal(found[name], values)
        assert found[name].shape == values.shape
