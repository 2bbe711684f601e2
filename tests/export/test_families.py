"""Every family on small random weights: both files against transformers on the grid's values, past the window too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgestill.export import parity
from edgestill.export.architecture import FAMILIES, exact_norms, read_shape
from edgestill.export.cards import genai_config
from edgestill.export.gguf_writer import write_gguf
from edgestill.export.grid import Grid, GridTensor, Kind
from edgestill.export.onnx_writer import write_onnx
from edgestill.export.plan import check_base
from edgestill.export.tokenizer_writer import GgufTokenizer
from edgestill.export.weights import load_grid, to_grid
from edgestill.runtime.errors import GateFailed, UsageError
from edgestill.runtime.task import Task

VOCABULARY, TOKENS, WINDOW = 128, 56, 16
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama, rope of Llama 3": {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 32},
    "gemma3_text": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
ENTROPY_NATS = 0.5, 3.0
MAX_KL_NATS = 1e-4
# llama.cpp looks GELU up in a table of float16
MAX_ERROR_ONNX, MAX_ERROR_GGUF = 1e-5, 1e-3


def small_model(name: str) -> Any:
    """Random weights rounded to bfloat16, as published ones are; norms that scale by about 1, a head that is sure."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(11)
    config = AutoConfig.for_model(name.split(",")[0], **{**SIZES, **MODELS[name]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    offset = FAMILIES[type(model).__name__].norm_offset
    for key, p in model.named_parameters():
        if key.endswith("norm.weight"):
            torch.nn.init.normal_(p, mean=(6.0 if key == "model.norm.weight" else 1.0) - offset, std=0.1)
        else:
            torch.nn.init.normal_(p, std=0.06 if "embed" in key or "lm_head" in key else 0.15)
        p.data = p.data.bfloat16().float()
    return model.eval()


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return small_model(request.param)


@pytest.fixture(scope="module")
def config(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """config.json as transformers saves it."""
    folder = tmp_path_factory.mktemp("family")
    model.save_pretrained(folder)
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def ids_of(count: int = TOKENS) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(4)).tolist()


def torch_logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(model(input_ids=torch.tensor([ids])).logits[0])


def in_full(grid: Grid) -> Grid:
    """The same numbers, none of them as codes: llama.cpp then rounds no activation."""
    return Grid(grid.config, {name: GridTensor("f32", values=t.dequantize()) for name, t in grid.tensors.items()})


def tokenizer() -> GgufTokenizer:
    """A vocabulary that llama.cpp takes; no text goes through it."""
    kinds = (3, 3, 3, *[1] * (VOCABULARY - 3))
    tokens = tuple(f"t{i}" for i in range(VOCABULARY))
    return GgufTokenizer(tokens, kinds, ("t 1",), "gpt-2", 1, False, 2, 0, None)


def gguf_logits(path: Path, ids: list[int]) -> NDArray[np.float32]:
    """Of every position, with a float32 cache; the second half token by token."""
    import llama_cpp

    llama = llama_cpp.Llama(str(path), n_ctx=64, n_batch=64, type_k=0, type_v=0, logits_all=True, verbose=False)
    try:
        llama.eval(ids[: len(ids) // 2])
        for token in ids[len(ids) // 2 :]:
            llama.eval([token])
        return np.array(llama.scores[: len(ids)], np.float32)
    finally:
        llama.close()


def onnx_logits(path: Path, ids: list[int], first: int) -> NDArray[np.float32]:
    """After `first` tokens at once, and after each of the others, one by one over the cache."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pasts = [i for i in session.get_inputs() if i.name.startswith("past")]
    past = [np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in pasts]
    found, seen = [], 0
    for piece in (ids[:first], *([token] for token in ids[first:])):
        seen += len(piece)
        feeds = {"input_ids": np.array([piece]), "attention_mask": np.ones((1, seen), np.int64)}
        logits, *past = session.run(None, {**feeds, **{i.name: p for i, p in zip(pasts, past, strict=True)}})
        found.append(logits[0])
    return np.concatenate(found)


def assert_alike(found: NDArray[np.float32], wanted: NDArray[np.float32], max_error: float) -> None:
    """Relative error of all logits, and how far the distributions are apart anywhere; they are sharp enough to tell."""
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (wanted, found))
    entropy = float(-(p.exp() * p).sum(-1).mean())
    assert ENTROPY_NATS[0] < entropy < ENTROPY_NATS[1]
    error = float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))
    kl = float((p.exp() * (p - q)).sum(-1).max())
    assert error <= max_error, (error, kl)
    assert kl <= MAX_KL_NATS, (error, kl)


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0"])
def test_the_onnx_file_computes_what_transformers_computes(
    model: Any, config: dict[str, Any], quantization: Kind, tmp_path: Path
) -> None:
    grid = to_grid(model, config, quantization)
    write_onnx(grid, tmp_path / "model.onnx", accuracy_level=0)
    wanted = torch_logits(load_grid(model, grid), ids_of())
    for first in (1, 5, WINDOW + 9):
        found = onnx_logits(tmp_path / "model.onnx", ids_of(), first)
        assert_alike(found, wanted[first - 1 :], MAX_ERROR_ONNX)
    lengths = range(TOKENS % 4, TOKENS + 1, 4)
    at_once = [onnx_logits(tmp_path / "model.onnx", ids_of()[:n], n) for n in lengths if n]
    assert_alike(np.concatenate(at_once), wanted[[n - 1 for n in lengths if n]], MAX_ERROR_ONNX)


def test_the_gguf_file_computes_what_transformers_computes(model: Any, config: dict[str, Any], tmp_path: Path) -> None:
    grid = to_grid(model, config, "q4_0")
    write_gguf(in_full(grid), tokenizer(), "small", "f32", tmp_path / "model.gguf")
    wanted = torch_logits(load_grid(model, grid), ids_of())
    assert_alike(gguf_logits(tmp_path / "model.gguf", ids_of()), wanted, MAX_ERROR_GGUF)


def test_both_files_hold_the_grids_numbers(model: Any, config: dict[str, Any], tmp_path: Path) -> None:
    told, rounded = np.random.default_rng(1), to_grid(model, config, "q4_0")
    shaken = {
        name: GridTensor("f32", values=t.dequantize() * told.uniform(0.9, 1.1, t.shape).astype(np.float32))
        for name, t in rounded.tensors.items()
        if t.kind == "f32"
    }
    grid = exact_norms(Grid(config, {**rounded.tensors, **shaken}))
    paths = tmp_path / "model.onnx", tmp_path / "model.gguf"
    write_onnx(grid, paths[0])
    write_gguf(grid, tokenizer(), "small", "q4_0", paths[1])
    readers = {"onnx": (paths[0], parity.read_onnx), "gguf": (paths[1], parity.read_gguf)}
    assert parity.check_same_numbers(grid, readers)["tensors"] == len(grid.tensors)
    assert parity.check_files_agree(*paths, config) == len(grid.tensors)


def test_what_transformers_saves_passes_the_plan(config: dict[str, Any]) -> None:
    check_base(config, "causal")


def test_a_changed_rope_table_in_the_gguf_file_is_found(tmp_path: Path) -> None:
    import gguf

    model = small_model("llama, rope of Llama 3")
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    grid, path = to_grid(model, config, "q4_0"), tmp_path / "model.gguf"
    write_gguf(grid, tokenizer(), "small", "q4_0", path)
    readers = {"gguf": (path, parity.read_gguf)}
    parity.check_same_numbers(grid, readers)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight")
    data = np.memmap(path, np.uint8, "r+")
    data[tensor.data_offset] ^= 1
    data.flush()
    with pytest.raises(GateFailed, match=r"rope_freqs\.weight"):
        parity.check_same_numbers(grid, readers)


def test_an_offset_can_be_added_to_a_norm_and_taken_away_without_loss() -> None:
    config = {**SIZES, **MODELS["gemma3_text"], "architectures": ["Gemma3ForCausalLM"], "rms_norm_eps": 1e-6}
    told, name, other = np.random.default_rng(0), "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
    wild = (told.standard_normal(200_000) * 10.0 ** told.uniform(-9, 4, 200_000)).astype(np.float32)
    weights = GridTensor("f32", values=np.concatenate([wild, np.float32(-1) + wild[:1000] * np.float32(1e-6)]))
    grid = exact_norms(Grid(config, {name: weights, other: weights}))
    exact = grid.tensors[name].dequantize()
    assert grid.tensors[other] is weights
    assert (np.abs(exact - weights.dequantize()) <= np.maximum(np.abs(weights.dequantize()), 1) * 2.0**-23).all()
    assert np.array_equal(exact_norms(grid).tensors[name].dequantize(), exact)


def test_onnxruntime_genai_continues_as_torch_does(model: Any, config: dict[str, Any], tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    grid = to_grid(model, config, "q8_0")
    write_onnx(grid, tmp_path / "model.onnx", accuracy_level=0)
    task = Task("classify", "Which?", (), "{text}", "path", "", None, 64, "refuse", 1, 2)
    (tmp_path / "genai_config.json").write_text(json.dumps(genai_config(grid, task, "model.onnx")))
    opened = genai.Model(str(tmp_path))
    options = genai.GeneratorParams(opened)
    options.set_search_options(max_length=TOKENS, do_sample=False)
    generator = genai.Generator(opened, options)
    generator.append_tokens(np.array(ids_of(WINDOW + 4), np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    written = generator.get_sequence(0).tolist()
    wanted = torch_logits(load_grid(model, grid), written).argmax(-1).tolist()
    assert len(written) > WINDOW + 8
    assert written[WINDOW + 4 :] == wanted[WINDOW + 3 : len(written) - 1]


@pytest.mark.parametrize(
    ("family", "changed", "message"),
    [
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window True, supported: False"),
        ("qwen3", {"attention_bias": True}, "attention_bias True, supported: False"),
        ("qwen2", {"rope_parameters": {**LLAMA3_ROPE, "rope_type": "yarn"}}, "rope 'yarn', supported: default"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope 'linear', supported: default, llama3"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5, supported: 1"),
        ("gemma3_text", {"query_pre_attn_scalar": 168}, "query_pre_attn_scalar 168, supported: 256"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0, supported: None"),
        ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation 'gelu', supported: gelu_pytorch_tanh"),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
            "rope 'linear', supported: default",
        ),
    ],
)
def test_what_a_family_does_not_write_is_refused_by_its_key(family: str, changed: dict[str, Any], message: str) -> None:
    architecture = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3_text": "Gemma3"}[family]
    config = {**SIZES, "model_type": family, "architectures": [f"{architecture}ForCausalLM"]}
    check_base(config, "causal")
    with pytest.raises(UsageError) as caught:
        check_base({**config, **changed}, "causal")
    assert message in str(caught.value)


def test_a_config_json_of_an_older_transformers_means_the_same() -> None:
    """As google/gemma-3-1b-it and meta-llama/Llama-3.2-1B have it."""
    old = {**SIZES, "num_hidden_layers": 7, "architectures": ["Gemma3ForCausalLM"], "rms_norm_eps": 1e-6,
           "sliding_window": 512, "sliding_window_pattern": 6, "rope_theta": 2e6, "rope_local_base_freq": 20000,
           "rope_scaling": None, "head_dim": 256}  # fmt: skip
    shape = read_shape(old)
    assert [kind.window for kind in shape.kinds] == [512] * 5 + [None, 512]
    assert {kind.rope.theta for kind in shape.kinds if kind.window} == {2e4}
    assert shape.kinds[5].rope.theta == 2e6
    assert shape.tied
    scaled = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    llama = {**SIZES, "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6}
    before = read_shape({**llama, "rope_theta": 5e5, "rope_scaling": scaled})
    assert before.kinds == read_shape({**llama, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 5e5}}).kinds
    assert not before.tied
