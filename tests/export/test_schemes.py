"""Folders and adapters without a recipe: what is written computes what torch does and holds what its label says."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from numpy.typing import NDArray

from edgestill.export import kquants
from edgestill.export.grid import Grid
from edgestill.export.imatrix import PIECE_TOKENS, measure, pieces, read_texts
from edgestill.export.model_folder import open_model
from edgestill.export.scheme_writer import SchemeWriter
from edgestill.export.schemes import MANIFEST_NAME, Exported, export_schemes, find_schemes
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, GateFailed, UsageError

IDS = [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30]
TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it would. " * 4
ALL_OF_A_DECODER = ("onnx-f32", "onnx-q8", "onnx-q4", "f16", "q8_0", "q4_0", "q4_K_M", "q6_K")


def export(source: Path, out: Path, *names: str, base: Path | None = None, calibrate: Path | None = None) -> Exported:
    return export_schemes(source, out, names, base, calibrate, lambda *_: None)


def torch_logits(folder: Path, adapter: Path | None = None) -> NDArray[np.float32]:
    """(T, V) in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        return np.asarray(model.eval()(input_ids=torch.tensor([IDS])).logits[0])


def onnx_logits(path: Path) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {"input_ids": np.array([IDS]), "attention_mask": np.ones((1, len(IDS)), np.int64)}
    for cached in session.get_inputs()[2:]:
        feeds[cached.name] = np.zeros((1, cached.shape[1], 0, cached.shape[3]), np.float32)
    return np.asarray(session.run(["logits"], feeds)[0][0])


def gguf_logits(path: Path) -> NDArray[np.float32]:
    import llama_cpp

    llama = llama_cpp.Llama(str(path), n_ctx=64, type_k=0, type_v=0, logits_all=True, verbose=False)
    try:
        llama.eval(IDS)
        return np.array(llama.scores[: len(IDS)], np.float32)
    finally:
        llama.close()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def written(tiny_base: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """The tiny model in every kind of scheme."""
    out = tmp_path_factory.mktemp("schemes") / "out"
    return out, export(tiny_base, out, *ALL_OF_A_DECODER, calibrate=texts)


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that changes the model, without a tokenizer of its own."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a head of three labels, as transformers saves it."""
    from transformers import AutoConfig, BertForSequenceClassification

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("classifier")
    names = {0: "red", 1: "green", 2: "blue"}
    config = AutoConfig.from_pretrained(tiny_encoder, num_labels=3, id2label=names, initializer_range=0.2)
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(tiny_encoder / name, folder / name)
    return folder


def test_float_files_give_torchs_logits(tiny_base: Path, written: tuple[Path, Exported]) -> None:
    wanted = torch_logits(tiny_base)
    assert np.abs(onnx_logits(written[0] / "onnx/model.onnx") - wanted[-1:]).max() < 1e-4
    assert np.abs(gguf_logits(written[0] / "gguf/model-f16.gguf") - wanted).max() < 2e-2 * np.abs(wanted).max()


@pytest.mark.parametrize(("file", "closeness"), [("q6_K", 0.995), ("q8_0", 0.999), ("q4_K_M", 0.97)])
def test_rounded_files_follow_torchs_logits(
    tiny_base: Path, written: tuple[Path, Exported], file: str, closeness: float
) -> None:
    wanted, found = torch_logits(tiny_base), gguf_logits(written[0] / f"gguf/model-{file}.gguf")
    cosine = (wanted * found).sum(-1) / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(found, axis=-1)
    assert cosine.min() > closeness


def test_labels_say_what_the_files_hold(written: tuple[Path, Exported]) -> None:
    """Rows of 64 and 128 fit no K-quant: its file holds plainer types, and says so."""
    folder, exported = written
    files = {file.scheme: file for file in exported.files}
    assert files["onnx-f32"].holds == {"F32": 20}
    assert files["onnx-q4"].holds == {"INT4": 14, "F32": 5, "INT8": 1}
    assert files["gguf-q4_0"].holds == {"Q4_0": 14, "F32": 5, "Q8_0": 1}
    assert files["gguf-f16"].holds == {"F16": 15, "F32": 5}
    assert files["gguf-q4_K_M"].holds == {"Q5_0": 12, "F32": 5, "Q8_0": 3}
    assert files["gguf-q4_K_M"].label.startswith("q4_K_M: 12 tensors Q5_0, 5 F32, 3 Q8_0; ")
    assert files["gguf-q4_0"].bits_per_weight == pytest.approx(files["onnx-q4"].bits_per_weight)
    for name, file in files.items():
        assert file.importance is (name in ("gguf-q4_K_M", "gguf-q6_K"))
        assert file.bits_per_weight * exported.parameters / 8 == pytest.approx(
            (folder / file.path).stat().st_size, rel=0.8
        )
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("model*")} == {f.path for f in exported.files}
    assert manifest.load(Exported, folder / MANIFEST_NAME) == exported
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_row_of_256_holds_a_real_k_quant_and_texts_change_its_bytes(
    tiny_base: Path, texts: Path, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = Path(shutil.copytree(tiny_base, tmp_path / "model"))
    config = LlamaConfig.from_pretrained(tiny_base, num_key_value_heads=2, head_dim=64, **sizes)
    LlamaForCausalLM(config).save_pretrained(model)
    plain = export(model, tmp_path / "plain", "q4_K_S").files[0]
    weighted = export(model, tmp_path / "weighted", "q4_K_S", calibrate=texts).files[0]
    assert plain.holds["Q4_K"] >= 6
    assert weighted.holds == plain.holds
    assert weighted.sha256 != plain.sha256
    assert "importance matrix" in weighted.label


def test_importance_is_the_mean_square_of_every_input(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    config = json.loads((tiny_base / "config.json").read_text(encoding="utf-8"))
    found = measure(model, config, [IDS[:6], IDS[6:]], lambda *_: None)
    assert found.tokens == len(IDS)
    assert {name.split(".", 2)[2] for name in found.means if name.startswith("blk.1.")} == {
        f"{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    layer, rows = model.model.layers[0], []
    with torch.inference_mode():
        for piece in (IDS[:6], IDS[6:]):
            rows.append(layer.input_layernorm(model.model.embed_tokens(torch.tensor(piece))))
        head = [model.model(input_ids=torch.tensor([piece])).last_hidden_state[0] for piece in (IDS[:6], IDS[6:])]
    assert np.allclose(found.means["blk.0.attn_q.weight"], torch.cat(rows).square().mean(0), rtol=1e-4)
    assert np.allclose(found.means["token_embd.weight"], torch.cat(head).square().mean(0), rtol=1e-4)


def test_pieces_are_short_begin_alike_and_lose_no_token() -> None:
    ids = list(range(1, 1200))
    found = pieces(lambda _: ids, [0], ["text"])
    assert [piece[0] for piece in found] == [0] * 3
    assert max(map(len, found)) == PIECE_TOKENS
    assert [i for piece in found for i in piece[1:]] == ids


def test_an_adapter_is_merged_into_the_base_it_names(tiny_base: Path, adapter: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("export", adapter, "--out", tmp_path / "out", "--scheme", "onnx-f32")
    assert done.returncode == 0, done.stderr
    found, wanted = onnx_logits(tmp_path / "out/onnx/model.onnx"), torch_logits(tiny_base, adapter)
    assert np.abs(found - wanted[-1:]).max() < 1e-4
    assert np.abs(torch_logits(tiny_base) - wanted).max() > 1e-2
    said = manifest.load(Exported, tmp_path / "out" / MANIFEST_NAME)
    assert said.adapter_sha256 == manifest.sha256_file(adapter / "adapter_model.safetensors")


def test_a_classifier_gives_torchs_logits_in_both_files(classifier: Path, tmp_path: Path) -> None:
    import onnxruntime
    from transformers import AutoModelForSequenceClassification

    out = tmp_path / "out"
    exported = export(classifier, out, "onnx-q8", "q8_0", "onnx-q4")
    ids = [101, 2417, 2665, 102]
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    with torch.inference_mode():
        wanted = np.asarray(model(input_ids=torch.tensor([ids])).logits[0])
    session = onnxruntime.InferenceSession(out / "onnx/model_q8.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    assert np.abs(session.run(["logits"], feeds)[0][0] - wanted).max() < 0.05 * np.abs(wanted).max() + 0.05
    assert exported.tokenizer == "bert"
    assert {file.scheme: file.holds for file in exported.files}["onnx-q4"]["INT4"] == 12


def test_two_processes_write_the_same_bytes(tiny_base: Path, texts: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edgestill.export.schemes import export_schemes\n"
        "model, texts, out = map(Path, sys.argv[1:])\n"
        "export_schemes(model, out, ['onnx-q4', 'onnx-f32', 'q4_0', 'q4_K_M'], None, texts, lambda *_: None)"
    )
    sums = []
    for name in ("one", "two"):
        command = [sys.executable, "-c", script, tiny_base, texts, tmp_path / name]
        subprocess.run(command, check=True, capture_output=True)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        sums.append({p.relative_to(tmp_path / name): manifest.sha256_file(p) for p in files})
    assert sums[0] == sums[1]
    assert {path.suffix for path in sums[0]} >= {".onnx", ".gguf", ".json"}


def test_the_verb_prints_a_line_a_file_and_what_to_type_next(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    done = cli("export", tiny_base, "--out", out)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{out}/onnx/model_q4.onnx  ")
    assert "  q4: 14 tensors INT4, 5 F32, 1 INT8; " in lines[0]
    assert "  q4_0: 14 tensors Q4_0, 5 F32, 1 Q8_0; " in lines[1]
    following = lines[-1].removeprefix("Next: python ")
    assert subprocess.run(f"{sys.executable} {following}", shell=True, capture_output=True, check=False).returncode == 0


def test_shards_of_bfloat16_with_a_copy_of_a_tied_head_are_read_as_float32(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = changed(tiny_base, tmp_path / "model")
    tensors = {name: t.bfloat16() for name, t in load_file(model / "model.safetensors").items()}
    (model / "model.safetensors").unlink()
    embedding = tensors.pop("model.embed_tokens.weight")
    save_file({"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}, model / "1.safetensors")
    save_file(tensors, model / "2.safetensors")
    weights = open_model(model).weights
    assert set(weights) == {"model.embed_tokens.weight", *tensors}
    for name, values in ({"model.embed_tokens.weight": embedding} | tensors).items():
        assert weights[name].dtype == np.float32
        assert np.array_equal(weights[name], np.asarray(values.float()))


def changed(folder: Path, out: Path, **changes: Any) -> Path:
    """A copy of a model folder with another config.json."""
    copy = Path(shutil.copytree(folder, out))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return copy


def without_weights(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder


def truncated(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return folder


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda base, out: changed(base, out, architectures=["GPT2LMHeadModel"]), "is a GPT2LMHeadModel, supported"),
        (lambda base, out: changed(base, out, num_hidden_layers=3), r"lacks or adds \['model.layers.2"),
        (lambda base, out: changed(base, out, vocab_size=49280), r"is \(49152, 64\), config.json says \(49280, 64\)"),
        (lambda base, out: changed(base, out, vocab_size=100), "ids up to 49151, the model 100 words"),
        (lambda base, out: changed(base, out, quantization_config={}), "quantized already"),
        (lambda base, out: without_weights(changed(base, out)), r"has no \.safetensors file"),
        (lambda base, out: truncated(changed(base, out)), "is not a whole safetensors file"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    tiny_base: Path, tmp_path: Path, spoil: Callable[[Path, Path], Path], words: str
) -> None:
    model = spoil(tiny_base, tmp_path / "model")
    with pytest.raises(EdgestillError, match=words):
        export(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_bare_encoder_and_floats_of_encoders_are_refused(
    tiny_encoder: Path, classifier: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="holds BertModel, which has no head for labels"):
        export(tiny_encoder, tmp_path / "out")
    with pytest.raises(UsageError, match="an encoder is not written as gguf-q4_K_M - choose from: onnx-q8, "):
        export(classifier, tmp_path / "out", "q4_K_M")


def test_a_quantizer_that_fails_says_why_in_one_error_and_prints_nothing(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EdgestillError, match=r"llama\.cpp could not write q4_K_M: .*failed to load model"):
        kquants.quantize_file(tiny_base / "config.json", tmp_path / "out.gguf", "q4_K_M", {})
    assert capfd.readouterr().err == ""


def test_importance_of_another_width_is_refused(written: tuple[Path, Exported], tmp_path: Path) -> None:
    means = {"blk.0.attn_q.weight": np.ones(7, np.float32)}
    with pytest.raises(EdgestillError, match=r"imatrix size 7 is different"):
        kquants.quantize_file(written[0] / "gguf/model-f16.gguf", tmp_path / "out.gguf", "q4_K_M", means)


def test_usage_is_refused_in_one_line(tiny_base: Path, adapter: Path, texts: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((tiny_base,), "--out is missing - add --out DIR"),
        ((tmp_path / "empty", "--out", tmp_path / "out"), "holds neither config.json nor adapter_config.json"),
        ((tiny_base, "--out", tiny_base), "exists already - name a new folder with --out"),
        ((tiny_base, "--out", tmp_path / "out", "--scheme", "q9"), "no scheme 'q9' - choose from: onnx-f32, "),
        ((tiny_base, "--out", tmp_path / "out", "--calibrate", texts), "--calibrate weights K-quants"),
        ((tiny_base, "--out", tmp_path / "out", "--base", "x"), "holds a model and no adapter - leave --base out"),
        ((adapter, "--out", tmp_path / "out", "--base", "./no"), "no folder no - name the base with --base FOLDER"),
        (("recipe.yaml", "--scheme", "q4_0"), "recipe.yaml is no folder; --scheme"),
    ):
        done = cli("export", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert words in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", '{"text": "a"}\n{"said": "b"}\n', r"has a row \{\"said\": \"b\"\}"),
        ("rows.txt", " \n", "holds no text"),
        ("rows.csv", "a,b\n", r"is no \.txt or \.jsonl file"),
    ],
)
def test_calibration_texts_that_are_none_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_texts(tmp_path / name)


def test_schemes_go_by_full_or_short_name_each_once() -> None:
    assert [s.name for s in find_schemes(["q4_0", "gguf-q4_0", "onnx-q4"])] == ["onnx-q4", "gguf-q4_0"]
    assert [s.name for s in find_schemes([])] == ["onnx-q4", "gguf-q4_0"]


@pytest.mark.parametrize("name", ["onnx-q4", "gguf-q4_0"])
@pytest.mark.parametrize("fault", ["another code", "a tensor less", "a tensor more"])
def test_a_file_that_does_not_hold_its_grid_ends_the_export(
    tiny_base: Path, written: tuple[Path, Exported], name: str, fault: str
) -> None:
    writer, (scheme,) = SchemeWriter(open_model(tiny_base), written[0]), find_schemes([name])
    grid, path, one = writer.grid(scheme.kind), written[0] / scheme.path, "model.layers.1.mlp.down_proj.weight"
    writer._check_numbers(scheme, grid, path)
    tensors = dict(grid.tensors)
    if fault == "another code":
        codes = tensors[one].codes
        assert codes is not None
        changed = codes.copy()
        changed[3, 5] = -changed[3, 5] - 1
        tensors[one] = dataclasses.replace(tensors[one], codes=changed)
    elif fault == "a tensor less":
        tensors.pop(one)
    else:
        tensors["model.layers.2.mlp.down_proj.weight"] = tensors[one]
    with pytest.raises(GateFailed, match=r"layers\.[12]\.mlp\.down_proj"):
        writer._check_numbers(scheme, Grid(grid.config, tensors), path)
