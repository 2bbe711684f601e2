"""The demo's files in other people's programs, and gates that notice a planted error."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgestill.export import parity
from edgestill.runtime import load
from edgestill.runtime.errors import GateFailed
from edgestill.runtime.task import Task, load_tokenizer

TEXT = "it is far too dark in the hallway"


def config_of(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "config.json").read_text(encoding="utf-8")))


def prompt_of(bundle: Path, text: str = TEXT) -> tuple[Task, list[int]]:
    student = load(bundle)
    return student.task, student.task.encode(load_tokenizer(bundle), text)


def test_both_files_hold_the_same_numbers(bundle: Path) -> None:
    paths = bundle / "onnx/model_q4.onnx", bundle / "gguf/model-q4_0.gguf"
    assert parity.check_files_agree(*paths, config_of(bundle)) == 272
    assert abs(paths[0].stat().st_size / paths[1].stat().st_size - 1) < 0.02


def test_one_changed_code_in_the_gguf_file_is_found(bundle: Path, tmp_path: Path) -> None:
    import gguf

    changed = tmp_path / "changed.gguf"
    shutil.copyfile(bundle / "gguf/model-q4_0.gguf", changed)
    tensor = next(t for t in gguf.GGUFReader(changed).tensors if t.name == "blk.7.attn_q.weight")
    data = np.memmap(changed, np.uint8, "r+")
    data[tensor.data_offset + 2] ^= 1
    data.flush()
    with pytest.raises(GateFailed, match=r"layers\.7\.self_attn\.q_proj"):
        parity.check_files_agree(bundle / "onnx/model_q4.onnx", changed, config_of(bundle))


def test_one_changed_byte_in_a_bundle_fails_verification(bundle: Path, tmp_path: Path, cli: Any) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    assert cli("verify", copy).returncode == 0
    with (copy / "onnx/model_q4.onnx").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)
        file.seek(50_000_000)
        file.write(bytes([byte[0] ^ 1]))
    done = cli("verify", copy)
    assert done.returncode == 2
    assert "onnx/model_q4.onnx was changed" in done.stderr
    (copy / "bundle.json").unlink()
    assert cli("run", copy, TEXT).returncode == 1


def test_plain_onnxruntime_opens_the_file_and_gives_our_label(bundle: Path) -> None:
    import onnxruntime

    task, ids = prompt_of(bundle)
    session = onnxruntime.InferenceSession(bundle / "onnx/model_q4.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([ids, ids]), "attention_mask": np.ones((2, len(ids)), np.int64)}
    for wanted in session.get_inputs():
        if wanted.name not in feeds:
            assert wanted.shape[0] == "batch_size"
            feeds[wanted.name] = np.zeros((2, wanted.shape[1], 0, wanted.shape[3]), np.float32)
    logits = session.run(["logits"], feeds)[0]
    found = [task.label_names[int(row[[label.token_id for label in task.labels]].argmax())] for row in logits[:, -1]]
    assert found == ["lights", "lights"] == [load(bundle).predict(TEXT).label] * 2


def test_onnxruntime_genai_loads_the_folder_and_prints_the_label(bundle: Path) -> None:
    og = pytest.importorskip("onnxruntime_genai")
    task, ids = prompt_of(bundle)
    model = og.Model(str(bundle))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 8, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(ids, np.int32))
    written = []
    while not generator.is_done() and len(written) < 8:
        generator.generate_next_token()
        written.append(int(generator.get_next_tokens()[0]))
    text = load_tokenizer(bundle).decode([t for t in written if t != task.eos_token_id])
    assert text.strip() == "lights"
    assert og.Tokenizer(model).encode(task.render(TEXT, task.answer_suffix)).tolist() == ids


def test_llama_cpp_loads_the_file_and_prints_the_label_and_stops(bundle: Path) -> None:
    import llama_cpp

    task, ids = prompt_of(bundle)
    llama = llama_cpp.Llama(str(bundle / "gguf/model-q4_0.gguf"), n_ctx=128, verbose=False)
    try:
        assert llama.tokenize(task.render(TEXT, task.answer_suffix).encode(), add_bos=True) == ids
        done = llama.create_completion(task.render(TEXT, task.answer_suffix), max_tokens=8, temperature=0)
    finally:
        llama.close()
    assert done["choices"][0]["text"].strip() == "lights"
    assert done["choices"][0]["finish_reason"] == "stop"


def test_both_engines_mean_the_same_by_a_probability(bundle: Path) -> None:
    onnx, gguf = load(bundle, "onnx"), load(bundle, "gguf")
    for text in (TEXT, "wake me at six", "did it rain in Lisbon", "my brother will not stop talking"):
        a, b = onnx.predict(text), gguf.predict(text)
        assert sum(a.probabilities.values()) == pytest.approx(1)
        assert max(abs(a.probabilities[k] - b.probabilities[k]) for k in a.probabilities) < 0.15
        words = onnx.predict(text, labels=["lights", "a lamp", "weather"])
        assert set(words.probabilities) == {"lights", "a lamp", "weather"}
        assert sum(words.probabilities.values()) == pytest.approx(1)


def test_scores_rank_the_trained_answer_first_in_both_engines(bundle: Path) -> None:
    for engine in ("onnx", "gguf"):
        student = load(bundle, engine)
        prompt = student.task.render(TEXT, student.task.answer_suffix)
        lights, music = student.score(prompt, [" lights", " music"])
        assert music < lights <= 0
        assert student.generate(prompt).strip() == "lights"


def test_training_prompt_and_device_prompt_are_the_same_token_ids(bundle: Path) -> None:
    from edgestill.distill.student.causal import make_example
    from edgestill.distill.teacher.protocol import Annotation

    task, ids = prompt_of(bundle)
    answer = Annotation("x", "lights", None, "because it is dark", None, None, None, "")
    example = make_example(task, load_tokenizer(bundle), TEXT, answer)
    assert list(example.label.prompt) == ids
    assert example.label.completion[-1] == task.eos_token_id
    assert len(ids) <= 24
