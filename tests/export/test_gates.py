"""Every gate of a build passes on what was built and fails on a planted fault: figure, threshold and what to type."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from encoder_runs import TEXTS, Run, config_of, encoder_task, export_section, silent
from onnx import numpy_helper

from edgestill.distill.run import load_run
from edgestill.export.build import Build
from edgestill.export.decoder import DecoderCompiler
from edgestill.export.encoder import EncoderCompiler
from edgestill.export.gates.answers import Answers, answer_gates, flips_allowed, measure
from edgestill.export.gates.check import FINER, answer_checks, file_gates
from edgestill.export.gates.endings import TorchSession, ending_gate, ends, longest_answer
from edgestill.export.gates.gate import at_most, gate_lines, gate_table, require
from edgestill.export.gates.reference import Reference, by_labels, golden_rows, kl_nats, references
from edgestill.export.gates.size import size_gate
from edgestill.export.gates.template import template_gate
from edgestill.export.gates.tokens import probe_texts, token_gates
from edgestill.export.gates.twin import MAX_RELATIVE_ERROR, compare, twin_gates, write_twin
from edgestill.export.grid import Grid, GridTensor
from edgestill.export.pack import run_export
from edgestill.export.parity import check_same_numbers, tokenizer_probes
from edgestill.runtime import decode, manifest
from edgestill.runtime.bundle import changed_files, load_task
from edgestill.runtime.errors import GateFailed
from edgestill.runtime.gguf_session import GgufSession
from edgestill.runtime.metrics import Estimate
from edgestill.runtime.onnx_session import OnnxSession
from edgestill.runtime.task import Label, Task, load_tokenizer

ENGINES = ("onnx", "gguf")


@dataclasses.dataclass(frozen=True)
class Built:
    """A decoder student after all files were written, before any gate: what a build holds at that point."""

    build: Build
    grid: Grid
    logits: Any
    rows: list[Reference]

    @property
    def task(self) -> Task:
        return self.build.task

    def path(self, engine: str) -> Path:
        path = self.build.path(engine)
        assert path is not None
        return path

    def session(self, engine: str, path: Path | None = None) -> Any:
        return {"onnx": OnnxSession, "gguf": GgufSession}[engine](path or self.path(engine), 1, 128)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_rows: Any, cli: Any) -> Path:
    """A trained tiny decoder's run."""
    folder = tmp_path_factory.mktemp("gates")
    recipe = tiny_rows(folder)
    text = recipe.read_text(encoding="utf-8").replace("batch_rows: 8", "batch_rows: 8, precision: float32")
    recipe.write_text(text, encoding="utf-8")
    for verb in ("annotate", "train"):
        done = cli(verb, recipe, "--out", "run", cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder / "run" / "student"


@pytest.fixture(scope="module")
def built(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built") / "bundle"
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    build = Build(load_run(student), student, folder, load_task(student), config, ENGINES, "q4_0")
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        shutil.copyfile(student / name, folder / name)
    rows = list(manifest.read_jsonl(student / "dev.jsonl"))
    tokenizer, compiler = load_tokenizer(student), DecoderCompiler(build)
    compiler.read([build.task.encode(tokenizer, rows[0]["text"])])
    grid = compiler.grid()
    compiler.write(grid, [row["text"] for row in rows])
    logits = compiler.logits(grid)
    return Built(build, grid, logits, references(logits, build.task, tokenizer, rows))


def elsewhere(built: Built, folder: Path) -> Built:
    """A copy to plant a fault in."""
    copied = Path(shutil.copytree(built.build.folder, folder / "bundle"))
    return dataclasses.replace(built, build=dataclasses.replace(built.build, folder=copied))


def failed(gates: list[Any]) -> list[str]:
    return [gate.name for gate in gates if not gate.passed]


def change_onnx(path: Path, name: str, change: Any) -> None:
    model = onnx.load_model(str(path))
    tensor = next(i for i in model.graph.initializer if i.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), name))
    onnx.save_model(model, str(path))


def change_gguf(path: Path, name: str, change: Any) -> None:
    import gguf

    tensor = next(t for t in gguf.GGUFReader(path, "r+").tensors if t.name == name)
    change(tensor.data)
    tensor.data.flush()


# The gate itself


def test_a_gate_that_fails_names_figure_threshold_and_what_to_type() -> None:
    passed, failing = at_most("a", 1e-5, 1e-4, "nats"), at_most("onnx: labels", 3, 2, "of 32")
    assert require([passed], FINER) == [passed]
    with pytest.raises(
        GateFailed, match=r"gate onnx: labels: found 3 of 32, wanted at most 2 - set export\.quant"
    ) as caught:
        require([passed, failing], FINER)
    assert caught.value.exit_code == 2
    assert not at_most("no number", float("nan"), 1, "").passed


def test_every_gate_is_one_line_and_one_row_of_the_card() -> None:
    gates = [at_most("a", 1.234e-5, 1e-4, "nats"), at_most("b", 10_000, 0, "of 10,000 texts")]
    lines = gate_lines({"gates": [dataclasses.asdict(gate) for gate in gates]})
    assert lines == ["ok      a: 1.2e-05 nats, at most 0.0001", "FAILED  b: 10,000 of 10,000 texts, at most 0"]
    assert gate_table(gates).splitlines()[2] == "| a | 1.2e-05 nats | 0.0001 |"
    assert gate_lines({}) == []


def test_a_whole_build_holds_its_gates_in_manifest_and_card_and_leaves_no_twin(student: Path, tmp_path: Path) -> None:
    labelled = Path(shutil.copytree(student, tmp_path / "student"))
    listed = json.loads((labelled / "student.json").read_text(encoding="utf-8"))
    manifest.write_json(labelled / "student.json", {**listed, "files": {}})
    rows = [{**row, "label": "red"} for row in manifest.read_jsonl(labelled / "dev.jsonl")]
    manifest.write_jsonl(labelled / "dev.jsonl", rows)
    bundle, _ = run_export(labelled, export_section(), tmp_path / "bundle", silent)
    gates = bundle.parity["gates"]
    names = [gate["name"] for gate in gates]
    assert all(gate["passed"] for gate in gates)
    assert len(names) == len(set(names)) == 22
    for engine in ENGINES:
        assert sum(name.startswith(engine) for name in names) == 8
        assert bundle.parity["answers"][engine]["rows"] == len(rows)
        assert bundle.parity["answers"][engine]["accuracy_lost"]["low"] <= 0.02
    assert re.search(r"of 10,\d\d\d texts", next(gate["unit"] for gate in gates if gate["name"].endswith("llama.cpp")))
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in card for name in names)
    assert not [path for path in (tmp_path / "bundle").rglob("*") if "twin" in path.name]
    assert changed_files(tmp_path / "bundle", bundle) == []


# Planted faults, one a gate


def test_the_files_as_they_were_written_pass_every_gate(built: Built) -> None:
    probes = tokenizer_probes(probe_texts(built.build.student, [row.text for row in built.rows]))
    numbers = {"tensors": 1, "max_difference": 0.0}
    assert len(probes) >= 10_000
    assert failed(file_gates(built.build, {"merge_max_logit_difference": 0.0}, numbers, probes)) == []
    facts, gates = answer_checks(built.build, built.grid, built.logits, built.rows)
    assert failed(gates) == []
    assert set(facts) == set(ENGINES)


def test_an_adapter_that_merged_to_something_else_is_found(built: Built) -> None:
    with pytest.raises(
        GateFailed, match=r"gate merged against adapter, any logit: found 0\.002 logits, wanted at most 0\.001"
    ):
        file_gates(built.build, {"merge_max_logit_difference": 0.002}, {"tensors": 1, "max_difference": 0.0}, ["a"])


@pytest.mark.parametrize("engine", ENGINES)
def test_one_changed_byte_is_found(built: Built, engine: str, tmp_path: Path) -> None:
    other = elsewhere(built, tmp_path)

    def flip(data: Any) -> Any:
        data = np.array(data) if engine == "onnx" else data
        data.reshape(-1)[7] ^= 1
        return data

    readers = DecoderCompiler(other.build).readers()
    name = "model.layers.1.mlp.down_proj.weight"
    if engine == "onnx":
        change_onnx(other.path("onnx"), f"{name}.codes", flip)
    else:
        change_gguf(other.path("gguf"), "blk.1.ffn_down.weight", flip)
    with pytest.raises(GateFailed, match=r"layers\.1\.mlp\.down_proj"):
        check_same_numbers(built.grid, {engine: (other.path(engine), readers[engine])})


@pytest.mark.parametrize("engine", ENGINES)
def test_the_twin_of_another_epsilon_is_found(built: Built, engine: str, tmp_path: Path) -> None:
    """A constant of the graph and no weight, so that equal numbers say nothing about it."""
    wrong = Grid({**built.grid.config, "rms_norm_eps": 1e-2}, built.grid.tensors)
    for grid, wanted in ((built.grid, []), (wrong, [f"{engine} in float32: RMS error of the logits"])):
        write_twin(built.build, engine, grid, tmp_path / "twin")
        gates = compare(engine, tmp_path / "twin", built.rows[:8], built.task, MAX_RELATIVE_ERROR)
        assert set(failed(gates)) >= set(wanted)
        assert bool(failed(gates)) is bool(wanted)


def test_the_twin_of_a_wrong_scale_is_found(built: Built, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.v_proj.weight"
    tensor = built.grid.tensors[name]
    assert tensor.scales is not None
    scales = tensor.scales.copy()
    scales[0] *= np.float16(1.5)
    wrong = Grid(built.grid.config, {**built.grid.tensors, name: GridTensor(tensor.kind, tensor.codes, scales)})
    for engine in ENGINES:
        write_twin(built.build, engine, wrong, tmp_path / f"{engine}.twin")
        assert failed(compare(engine, tmp_path / f"{engine}.twin", built.rows[:8], built.task, MAX_RELATIVE_ERROR))


@pytest.mark.parametrize(("engine", "threshold"), [("onnx", 1e-3), ("gguf", 3e-3)])
def test_the_twin_of_an_encoder_has_its_own_threshold_and_finds_another_epsilon(
    encoder_run: Run, engine: str, threshold: float, tmp_path: Path
) -> None:
    folder, task, config = encoder_run[0], encoder_task(), config_of(encoder_run[0])
    build = Build(load_run(folder), folder, tmp_path, task, config, ENGINES, "q4_0")
    compiler = EncoderCompiler(build)
    compiler.read([])
    grid = compiler.grid()
    rows = references(compiler.logits(grid), task, load_tokenizer(folder), [{"text": text} for text in TEXTS])
    gates = twin_gates(build, engine, grid, rows, task, tmp_path / "twin")
    assert failed(gates) == []
    assert [gate.threshold for gate in gates] == [1e-4, threshold]
    wrong = Grid({**config, "layer_norm_eps": 0.1}, grid.tensors)
    assert failed(twin_gates(build, engine, wrong, rows, task, tmp_path / "twin"))


def test_flipped_labels_count_only_beyond_what_three_percent_explains() -> None:
    assert [flips_allowed(n) for n in (1, 6, 32, 100, 200)] == [0, 1, 3, 6, 10]
    found = Answers(32, 28 / 32, 0.001, 0.1, 0.01, None)
    assert failed(answer_gates("onnx", found)) == ["onnx: labels other than torch's"]
    assert failed(answer_gates("onnx", dataclasses.replace(found, labels_kept=29 / 32))) == []


def test_accuracy_fails_only_when_the_whole_interval_is_beyond_the_margin() -> None:
    found = Answers(200, 1, 0.001, 0.1, 0.01, Estimate(0.05, 0.021, 0.08))
    assert failed(answer_gates("gguf", found)) == ["gguf: accuracy lost against torch, lower end of 95 %"]
    unsure = dataclasses.replace(found, accuracy_lost=Estimate(0.05, 0.019, 0.08))
    assert failed(answer_gates("gguf", unsure)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_labels_in_another_order_are_found_by_the_answers(built: Built, engine: str) -> None:
    swapped = dataclasses.replace(
        built.task,
        labels=tuple(
            dataclasses.replace(a, token_id=b.token_id)
            for a, b in zip(built.task.labels, built.task.labels[::-1], strict=True)
        ),
    )
    rows = [dataclasses.replace(row, teacher=row.label) for row in built.rows]
    tokenizer = load_tokenizer(built.build.folder)
    right = measure(built.session(engine), rows, built.task, tokenizer)
    assert failed(answer_gates(engine, right)) == []
    assert right.accuracy_lost is not None
    wrong = measure(built.session(engine), rows, swapped, tokenizer)
    assert failed(answer_gates(engine, wrong)) == [
        f"{engine}: labels other than torch's",
        f"{engine}: torch's margin in a changed answer",
        f"{engine}: accuracy lost against torch, lower end of 95 %",
    ]


def test_a_layer_that_lost_its_scales_is_found_by_the_answers(built: Built, tmp_path: Path) -> None:
    other = elsewhere(built, tmp_path)
    change_onnx(other.path("onnx"), "model.norm.weight", lambda value: value * np.float32(0.1))
    found = measure(other.session("onnx"), built.rows, built.task, load_tokenizer(built.build.folder))
    assert "onnx: mean KL at the answer" in failed(answer_gates("onnx", found))


def test_the_kl_is_that_of_the_definition() -> None:
    labels = (Label("a", "", 0, ""), Label("b", "", 2, ""))
    task = Task("classify", "", labels, "{text}", "path", "", None, 8, "refuse", None, 0)
    p, q = (np.array(x, np.float32) for x in ([0.3, -1.0, 2.0], [0.1, 0.5, 1.0]))
    wanted = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=torch.tensor(x)) for x in (p, q))
    )
    assert kl_nats(p, q, task) == pytest.approx(float(wanted), rel=1e-5)
    row = Reference("x", (1,), p, np.zeros(2), "a", None)
    seen, outputs = by_labels([row], task)
    assert seen[0].logits.tolist() == p[[0, 2]].tolist()
    assert [label.token_id for label in outputs.labels] == [0, 1]
    sets = dataclasses.replace(task, kind="multilabel")
    each = [
        float(
            torch.distributions.kl_divergence(
                *(torch.distributions.Bernoulli(logits=torch.tensor(x[i])) for x in (p, q))
            )
        )
        for i in (0, 2)
    ]
    assert kl_nats(p, q, sets) == pytest.approx(sum(each) / 2, rel=1e-5)


def test_golden_rows_hold_every_label_of_torchs_answer(built: Built) -> None:
    first = golden_rows(built.rows, built.task)[0]
    assert list(first["probabilities"]) == built.task.label_names
    assert first["label"] == max(first["probabilities"], key=first["probabilities"].__getitem__)


def test_a_changed_tokenizer_file_is_found_by_every_reader_of_it(built: Built, tmp_path: Path) -> None:
    other = elsewhere(built, tmp_path)
    probes = ["a tomato", "7 days", *built.build.task.label_names]
    path = other.build.folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["merges"] = data["model"]["merges"][50:]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert failed(token_gates(built.build, probes)) == []
    assert failed(token_gates(other.build, probes)) == ["token ids of tokenizer.json", "token ids in transformers"]


def test_another_splitting_rule_in_the_gguf_file_is_found(built: Built, tmp_path: Path) -> None:
    other = elsewhere(built, tmp_path)
    path = other.path("gguf")
    raw = path.read_bytes()
    assert raw.count(b"\x06\0\0\0\0\0\0\0smollm") == 1
    path.write_bytes(raw.replace(b"\x06\0\0\0\0\0\0\0smollm", b"\x06\0\0\0\0\0\0\0falcon"))
    assert failed(token_gates(other.build, ["room 12345", "it's 2007"])) == ["token ids in llama.cpp"]


def test_special_tokens_in_a_text_stay_text(built: Built) -> None:
    texts = probe_texts(built.build.student, ["x"])
    assert {"<|im_start|>", "a<|im_end|>b <|im_end|> c"} <= set(texts)
    assert failed(token_gates(built.build, texts)) == []


def test_every_row_of_a_run_is_probed(built: Built, tmp_path: Path) -> None:
    shutil.copy(built.build.student / "tokenizer.json", tmp_path)
    texts = {"test.jsonl": "tested", "train.jsonl": "learnt"}
    for name, text in texts.items():
        manifest.write_jsonl(tmp_path / name, [{"id": "1", "text": text}])
    assert {"x", "tested", "learnt"} <= set(probe_texts(tmp_path, ["x"]))


def test_a_changed_template_is_found(built: Built, tmp_path: Path) -> None:
    other = elsewhere(built, tmp_path)
    gguf = built.path("gguf")
    assert failed(template_gate(built.build.folder, gguf)) == []
    path = other.build.folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("system\n", "system \n"), encoding="utf-8")
    assert failed(template_gate(other.build.folder, gguf)) == ["chat template, renderings that differ"]
    path.unlink()
    settings = other.build.folder / "tokenizer_config.json"
    stored = json.loads(settings.read_text(encoding="utf-8"))
    manifest.write_json(settings, {key: value for key, value in stored.items() if key != "chat_template"})
    assert failed(template_gate(other.build.folder, gguf)) == ["chat template, renderings that differ"]


@pytest.mark.parametrize("engine", ENGINES)
def test_another_end_of_sequence_is_found(built: Built, engine: str) -> None:
    """A tiny base learns no end, so the token that torch writes last in the first answer stands for it."""
    longest = longest_answer(built.task, load_tokenizer(built.build.folder))
    known = {row.ids: row.logits for row in built.rows}
    by_torch, session = TorchSession(built.logits, known, 128), built.session(engine)
    written = list(decode.greedy(by_torch, built.rows[0].ids, [], longest + 1))
    task = dataclasses.replace(built.task, eos_token_id=written[-1])
    done = [ends(by_torch, row, task, longest) for row in built.rows]
    assert any(done)
    assert ending_gate(engine, session, done, built.rows, task, longest).passed
    gate = ending_gate(engine, session, done, built.rows, built.task, longest)
    assert (gate.passed, gate.figure) == (False, sum(done))
    assert gate.unit == f"of {sum(done)} that torch ends, {len(done)} asked"
    assert not ends(session, built.rows[0], task, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_holds_more_than_its_weights_is_found(built: Built, engine: str, tmp_path: Path) -> None:
    other = elsewhere(built, tmp_path)
    assert size_gate(other.build, engine, built.grid).passed
    with other.path(engine).open("ab") as file:
        file.write(bytes(2**20))
    assert failed([size_gate(other.build, engine, built.grid)])
