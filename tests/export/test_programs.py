"""One bundle in other people's programs: transformers.js in node, onnxruntime-genai, llama.cpp, transformers."""

import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_runs import LABELS, TEXTS, Run, encoder_task, export_section, silent

from edgestill.export.pack import run_export
from edgestill.export.parity import tokenizer_probes
from edgestill.runtime import decode, load, manifest
from edgestill.runtime.stages import Stages
from edgestill.runtime.task import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
CHAT = [{"role": "user", "content": "is a <lime> & a \n\n moss green?"}, {"role": "assistant", "content": " it is "}]
SAID = ("ruby number 5 next to a blood", "the frog I saw on day 9 was a moss", "a cherry")
MAX_NEW_TOKENS = 8
Web = Callable[..., Any]
Ids = list[list[int]]


@pytest.fixture(scope="session")
def web() -> Web:
    """Ask transformers.js: `web(wish, folder, questions)`."""
    if shutil.which("node") is None:
        pytest.skip("node is not on this machine")
    made = subprocess.run(
        ["make", "--no-print-directory", "web"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-2000:]

    def ask(wish: str, folder: Path, questions: list[Any], **options: str) -> Any:
        command = ["node", str(ROOT / "tests/web/ask.mjs"), wish, str(folder), json.dumps(options)]
        done = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_rows: Callable[[Path], Path]) -> Path:
    """A tiny student: it writes tokens of all kinds, so that equal ones say much."""
    folder = tmp_path_factory.mktemp("programs")
    stages = Stages(tiny_rows(folder), folder / "run")
    stages.annotate()
    stages.train()
    stages.export()
    return folder / "run"


@pytest.fixture(scope="module")
def tiny_bundle(tiny_run: Path) -> Path:
    return tiny_run / "bundle"


def copied_run(student: Path, folder: Path) -> Path:
    """A run to change: its manifest lists no file."""
    copy = Path(shutil.copytree(student, folder / "student"))
    listed = json.loads((copy / "student.json").read_text(encoding="utf-8"))
    manifest.write_json(copy / "student.json", {**listed, "files": {}})
    return copy


def prompts(folder: Path) -> list[str]:
    task = load(folder).task
    return [task.render(text, task.answer_suffix) for text in SAID]


def our_answers(folder: Path, asked: list[str]) -> Ids:
    """Token ids that our runtime writes, with the one that ends the answer."""
    student = load(folder)
    stop, answers = student.task.eos_token_id, []
    for prompt in asked:
        ids = student._tokenizer.encode(prompt, add_special_tokens=False).ids
        with student._fresh_session():
            written = list(decode.greedy(student._session, ids, [stop], MAX_NEW_TOKENS))
        answers.append(written if len(written) == MAX_NEW_TOKENS else [*written, stop])
    return answers


def genai_answers(folder: Path, asked: list[str]) -> Ids:
    """What onnxruntime-genai writes by the search options of genai_config.json, until it is done by itself."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    tokenizer, answers = og.Tokenizer(model), []
    for prompt in asked:
        ids = tokenizer.encode(prompt)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + MAX_NEW_TOKENS)
        generator, written = og.Generator(model, parameters), []
        generator.append_tokens(np.asarray(ids, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            written.append(int(generator.get_next_tokens()[0]))
        answers.append(written)
    return answers


def test_transformers_js_writes_our_tokens(tiny_bundle: Path, web: Web) -> None:
    assert web("generate", tiny_bundle, prompts(tiny_bundle)) == our_answers(tiny_bundle, prompts(tiny_bundle))


def test_onnxruntime_genai_writes_our_tokens(tiny_bundle: Path) -> None:
    assert genai_answers(tiny_bundle, prompts(tiny_bundle)) == our_answers(tiny_bundle, prompts(tiny_bundle))


def test_the_demo_answers_in_transformers_js_and_onnxruntime_genai_and_stops(bundle: Path, web: Web) -> None:
    task = load(bundle).task
    rows = list(manifest.read_jsonl(bundle / "golden.jsonl"))[:12]
    asked = [task.render(row["text"], task.answer_suffix) for row in rows]
    ours = our_answers(bundle, asked)
    assert all(ids[-1] == task.eos_token_id and len(ids) < MAX_NEW_TOKENS for ids in ours)
    assert web("generate", bundle, asked) == ours
    assert genai_answers(bundle, asked) == ours


def without_special_tokens(texts: Sequence[str], tokenizer: Any) -> list[str]:
    """Texts without what other programs read as a special token, and our runtime as text."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return [text for text in texts if not any(token in text for token in special)]


def test_transformers_js_and_transformers_read_text_as_we_do(tiny_bundle: Path, web: Web) -> None:
    from transformers import AutoTokenizer

    rows = [row["text"] for row in manifest.read_jsonl(ROOT / "distill/example/test.jsonl")]
    ours = load_tokenizer(tiny_bundle)
    texts = without_special_tokens(tokenizer_probes(rows), ours)
    wanted = [ours.encode(text, add_special_tokens=False).ids for text in texts]
    assert len(wanted) > 4000
    assert web("encode", tiny_bundle, texts) == wanted
    theirs = AutoTokenizer.from_pretrained(tiny_bundle)
    assert [theirs.encode(text, add_special_tokens=False) for text in texts] == wanted


def test_transformers_js_reads_text_as_we_do_for_an_encoder(minilm_bundles: dict[str, Path], web: Web) -> None:
    ours = load_tokenizer(minilm_bundles["q4_0"])
    texts = without_special_tokens(tokenizer_probes(TEXTS), ours)
    wanted = [ours.encode(text, add_special_tokens=False).ids for text in texts]
    assert web("encode", minilm_bundles["q4_0"], texts) == wanted


def test_digits_are_spelt_out_to_the_ids_of_training(tiny_run: Path) -> None:
    """transformers.js takes only 0 to 9 for digits; the tokenizers library every numeric character."""
    trained, shipped = (load_tokenizer(tiny_run / name) for name in ("student", "bundle"))
    steps = [
        json.loads((tiny_run / name / "tokenizer.json").read_text("utf-8"))["pre_tokenizer"]["pretokenizers"][0]["type"]
        for name in ("student", "bundle")
    ]
    assert steps == ["Digits", "Split"]
    numeric = [chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)).startswith("N")]
    assert len(numeric) > 1500
    for character in (*numeric, "a", "é", "-"):
        text = f"a {character}{character}7"
        assert shipped.encode(text).ids == trained.encode(text).ids


def test_a_conversation_is_written_alike_in_three_programs(tiny_bundle: Path, web: Web) -> None:
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter
    from transformers import AutoTokenizer

    llama = llama_cpp.Llama(str(tiny_bundle / "gguf/model-q4_0.gguf"), vocab_only=True, verbose=False)
    try:
        bos, eos = (llama._model.token_get_text(token) for token in (llama.token_bos(), llama.token_eos()))
        formatter = Jinja2ChatFormatter(llama.metadata["tokenizer.chat_template"], eos_token=eos, bos_token=bos)
    finally:
        llama.close()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bundle)
    wanted = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert CHAT[0]["content"] in wanted
    assert formatter(messages=CHAT).prompt == wanted
    assert web("chat", tiny_bundle, [CHAT]) == [wanted]


def test_a_chat_template_kept_apart_is_also_where_transformers_js_looks(tiny_run: Path, tmp_path: Path) -> None:
    """Bases saved by transformers 5 have theirs in chat_template.jinja alone."""
    student = copied_run(tiny_run / "student", tmp_path)
    config = json.loads((student / "tokenizer_config.json").read_text(encoding="utf-8"))
    manifest.write_json(student / "tokenizer_config.json", {k: v for k, v in config.items() if k != "chat_template"})
    run_export(student, export_section("q4_0", "onnx"), tmp_path / "bundle", silent)
    found = json.loads((tmp_path / "bundle/tokenizer_config.json").read_text(encoding="utf-8"))
    assert found["chat_template"] == (student / "chat_template.jinja").read_text(encoding="utf-8")
    assert not (tmp_path / "bundle/gguf").exists()


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0"])
def test_an_encoder_answers_as_text_classification(
    minilm_bundles: dict[str, Path], web: Web, quantization: str
) -> None:
    folder = minilm_bundles[quantization]
    options = {} if quantization == "q4_0" else {"dtype": "fp32", "model_file_name": "model_q8"}
    found, student = web("classify", folder, list(TEXTS), **options), load(folder)
    for text, scores in zip(TEXTS, found, strict=True):
        assert scores == pytest.approx(student.predict(text).probabilities, abs=1e-5)
        assert set(scores) == set(LABELS)


def test_an_encoder_that_gives_sets_answers_as_text_classification(roberta_run: Run, tmp_path: Path, web: Web) -> None:
    student = copied_run(roberta_run[0], tmp_path)
    manifest.save(student / "task.json", encoder_task(kind="multilabel"))
    run_export(student, export_section(), tmp_path / "bundle", silent)
    ours = load(tmp_path / "bundle")
    for text, scores in zip(TEXTS, web("classify", tmp_path / "bundle", list(TEXTS)), strict=True):
        assert scores == pytest.approx(ours.predict(text).probabilities, abs=1e-5)


def test_ollama_is_told_the_prompt_and_the_end_and_that_nobody_tried(tiny_bundle: Path) -> None:
    lines = (tiny_bundle / "gguf/Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# Untested")
    named = next(line.removeprefix("FROM ") for line in lines if line.startswith("FROM "))
    assert (tiny_bundle / "gguf" / named).is_file()
    template = "\n".join(lines).split('"""')[1]
    assert [template.replace("{{ .Prompt }}", text) for text in SAID] == prompts(tiny_bundle)
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER temperature 0" in lines
    assert "`gguf/Modelfile` is for Ollama and untested." in (tiny_bundle / "README.md").read_text(encoding="utf-8")
