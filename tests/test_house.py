"""The laws of the house, read from the source: who may import what, how long a file may be, what must be said."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("runtime", "distill", "export", "benchmarks")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]

OURS = {
    "runtime": ("edgestill.runtime",),
    "distill": ("edgestill.distill", "edgestill.runtime"),
    "export": (
        "edgestill.export",
        "edgestill.runtime",
        "edgestill.distill.run",
        "edgestill.distill.student.encoder",
        "edgestill.distill.student.merge",
        "edgestill.distill.torch_session",
    ),
    "benchmarks": ("edgestill.benchmarks", "edgestill.runtime"),
}
FORBIDDEN = {
    "runtime": {"torch", "transformers", "peft", "datasets", "openai"},
    "distill": {"onnx", "onnxruntime", "llama_cpp"},
    "export": {"openai", "datasets"},
    "benchmarks": {"torch", "transformers"},
}
# file -> reason
OPENS_ANY_ROOM = {
    "runtime/cli.py": "the front door opens the room of the verb it was given",
    "runtime/verbs_teacher.py": "the same door: the verbs around the teacher",
    "runtime/verbs_export.py": "the same door: models that are no students",
    "runtime/verbs_experiment.py": "the same door: arms by seeds, trained there and compared here",
    "runtime/verbs_prompts.py": "the same door: looks for a better instruction",
    "runtime/verbs_report.py": "the same door: reports joined and compared",
    "runtime/stages.py": "the same door: composes the stages of one run",
}
READS_WITH_LLAMA_CPP = {"export/tokenizer_writer.py": "asks llama.cpp for its token ids"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
LONGER: dict[str, str] = {}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether at top level) for every import statement of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), id(node) in top


def breaches(path: Path, room: str) -> list[str]:
    """Every import of a file that its room does not allow."""
    found = []
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    for module, at_top in imports(path):
        first = module.split(".")[0]
        if module.startswith(".") or first in (*ROOMS, "tests"):
            found.append(f"{name}: {module} is not an absolute edgestill name")
        if first in FORBIDDEN[room]:
            found.append(f"{name}: {room} must never import {first}")
        if first == "edgestill" and not _allowed(module, room) and not (name in OPENS_ANY_ROOM and not at_top):
            found.append(f"{name}: {room} may not import {module}")
    return found


def _allowed(module: str, room: str) -> bool:
    return any(module == allowed or module.startswith(allowed + ".") for allowed in OURS[room])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_room_imports_only_what_its_law_allows(path: Path) -> None:
    assert breaches(path, path.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("runtime", "import torch"),
        ("runtime", "def f():\n    from transformers import AutoModel"),
        ("runtime", "from edgestill.distill import recipe"),
        ("export", "from edgestill.distill.recipe import Recipe"),
        ("export", "import datasets"),
        ("benchmarks", "import torch.nn"),
        ("distill", "import onnxruntime as ort"),
        ("distill", "from edgestill.export.grid import Grid"),
        ("distill", "import distill.recipe"),
        ("distill", "from . import recipe"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, room: str, line: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(line, encoding="utf-8")
    assert breaches(planted, room)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_and_functions_stay_small_and_say_their_duty(path: Path) -> None:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{name} does not say what it is for"
    assert name in LONGER or text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{name}: {node.name} has {length} lines"


def test_only_the_owners_folders_hold_python() -> None:
    top = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".") and list(p.rglob("*.py"))}
    assert top - {"build", "dist", "runs"} == {*ROOMS, "tests"}
    assert not (ROOT / "edgestill").exists()
