"""What runs on the machine itself, and the lines that it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgestill.benchmarks.stage import MARK, answer_rows, events, main, process_age_s, requests_planned
from edgestill.runtime import manifest, student
from edgestill.runtime.errors import UsageError


def results(capsys, *arguments):
    main([str(argument) for argument in arguments])
    return list(events(capsys.readouterr().out.splitlines(keepends=True)))


def test_lines_of_others_are_passed_over():
    lines = ["Last login: today\n", f'motd without end{MARK}{{"kind": "a"}}\n', f"{MARK}cut of", '{"kind": "b"}\n']
    assert list(events(lines)) == [{"kind": "a"}]


def test_a_probe_needs_no_bundle_and_no_engine(capsys):
    [found] = results(capsys, "probe")
    assert found["kind"] == "result"
    assert found["device"]["cores_usable"] >= 1


def test_a_probe_imports_no_engine():
    code = "import sys; from edgestill.benchmarks.stage import main; main(['probe']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"onnxruntime", "llama_cpp", "tokenizers"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["load"], ["load", "somewhere"], ["nothing"]])
def test_a_stage_that_lacks_something_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "wants BUNDLE and ENGINE" in (said := capsys.readouterr().err) or "invalid choice" in said


def test_an_engine_that_the_bundle_lacks_is_named(tiny_bundle):
    with pytest.raises(UsageError, match="'onnx-labels' is not in this bundle"):
        main(["load", str(tiny_bundle), "onnx-labels", "--cold"])


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_every_row_goes_through_at_once(tiny_bundle, capsys, engine):
    [found] = results(capsys, "offline", tiny_bundle, engine)
    assert found["rows_per_s"] > 0


def test_rows_that_a_template_was_filled_into_are_not_filled_in_again(tiny_bundle, tmp_path, capsys):
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in tiny_bundle.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "task.json").unlink()
    task = json.loads((tiny_bundle / "task.json").read_text())
    (copy / "task.json").write_text(json.dumps({**task, "text": "{title}: {body}"}))
    [found] = results(capsys, "offline", copy, "onnx")
    assert found["rows_per_s"] > 0


def test_threads_and_rounds_are_as_asked(tiny_bundle, capsys):
    found = results(capsys, "task", tiny_bundle, "onnx", "--threads", "1", "--rounds", "2")
    rows = sum(1 for _ in manifest.read_jsonl(tiny_bundle / "reference" / "test.jsonl"))
    assert [fact["requests"] for fact in found if fact["kind"] == "planned"] == [2 * rows]
    assert sum(fact["kind"] == "request" for fact in found) == 2 * rows
    assert found[-1]["threads"] == 1


def texts(*values):
    return [{"id": str(i), "text": text} for i, text in enumerate(values)]


def test_as_many_requests_are_planned_as_percentiles_want():
    assert requests_planned(texts(*map(str, range(16)))) == 304, "whole rounds, at least 300"
    assert requests_planned(texts(*map(str, range(320)))) == 960, "three rounds of many rows"
    assert requests_planned(texts("one", "one")) == 2, "one text alone is answered from what the engine holds"


def test_an_answer_from_held_state_has_no_latency(tiny_bundle):
    rows = texts("only this")
    assert [r.latency_ms for r in answer_rows(student.load(tiny_bundle, "onnx"), rows, 1)] == [None]


def test_rounds_are_shuffled_and_hold_every_row(tiny_bundle):
    rows = texts(*(f"text number {i}" for i in range(4)))
    found = list(answer_rows(student.load(tiny_bundle, "onnx"), rows, 16))
    rounds = [[r.row_id for r in found if r.round == number] for number in range(4)]
    assert rounds[0] == ["0", "1", "2", "3"]
    assert all(sorted(ids) == rounds[0] for ids in rounds)
    assert any(ids != rounds[0] for ids in rounds[1:])


def test_this_process_has_an_age():
    assert (process_age_s() is not None) == Path("/proc/self/stat").exists()
    assert process_age_s() is None or process_age_s() > 0
