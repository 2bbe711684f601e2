"""Bundle: what export leaves and a device loads. Knows the folder's layout and its hashes; loads no model.

Layout (a Hugging Face hub repository at its root):
    bundle.json               the manifest, written last
    README.md                 model card
    config.json, tokenizer files; generation_config.json, genai_config.json for a student that writes
    task.json                 what is asked and how it is answered
    teacher_prompt.json       how the teacher was asked; the server knows its questions by it
    golden.jsonl              inputs with the answers of the trained weights: text, label, probabilities
    onnx/model_q4.onnx        one artifact
    onnx/labels_q4.onnx       where the recipe asks for it: the same weights in a graph that only labels
    gguf/model-q4_0.gguf      the other, from the same grid
    calibration.json          where enough development rows were judged: what each engine's confidence is scaled by
    reference/                test rows, the teacher's answers and the predictions made with torch
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.task import Task

MANIFEST_NAME = "bundle.json"
ONNX = "onnx"
ONNX_LABELS = "onnx-labels"


@dataclass(frozen=True)
class Artifact:
    """One model file of the bundle. `path` is relative to the bundle; `engine` is what the runtime loads it with.

    The engine `onnx-labels` is onnxruntime too, with a graph whose outputs are the task's labels in their order.
    """

    engine: str
    path: str
    quantization: str
    accuracy_level: int | None
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Bundle:
    """The manifest `bundle.json`.

    `files` maps each relative path to its SHA-256; `chain` holds the hashes of the recipe and of every parent
    manifest; `parity` holds what the gates measured at build time; `student` is its name among the recipe's students.
    """

    name: str
    created: str
    license_note: str
    base: dict[str, Any]
    teacher: dict[str, Any]
    artifacts: tuple[Artifact, ...]
    files: dict[str, str]
    chain: dict[str, str]
    versions: dict[str, str]
    parity: dict[str, Any]
    rows: dict[str, int]
    context_tokens: int
    parameters: int
    student: str = "student"
    schema: str = "edgestill-bundle/1"


def load_bundle(folder: Path) -> Bundle:
    """Read `bundle.json`.

    Raises:
        EdgestillError: the folder is missing or is no whole bundle.
    """
    if not folder.is_dir():
        raise EdgestillError(f"no folder {folder}", "name a bundle, such as runs/NAME/bundle")
    if not (folder / MANIFEST_NAME).exists():
        nested = folder / "bundle"
        hint = f"did you mean {nested}?" if (nested / MANIFEST_NAME).exists() else "type: edgestill build RECIPE"
        raise EdgestillError(f"{folder} has no {MANIFEST_NAME}: it is not a whole bundle", hint)
    return manifest.load(Bundle, folder / MANIFEST_NAME)


def load_task(folder: Path) -> Task:
    """Read `task.json` of a bundle or of a student run."""
    return manifest.load(Task, folder / "task.json")


def other_programs(folder: Path, bundle: Bundle) -> list[str]:
    """Commands that start other programs on a bundle's files: those of llama.cpp and Ollama, on a decoder's GGUF."""
    found = [folder / each.path for each in bundle.artifacts if each.engine == "gguf"]
    found = [path for path in found if path.with_name("Modelfile").exists()]
    commands = ("llama-server -m {file}", "ollama create {name} -f {modelfile}")
    return [
        command.format(file=path, name=bundle.name, modelfile=path.with_name("Modelfile"))
        for path in found
        for command in commands
    ]


def changed_files(folder: Path, bundle: Bundle) -> list[str]:
    """One line for every file whose bytes are not what the manifest says, and for every missing or foreign one.

    Hidden files are left alone: hubs and version control bring their own.
    """
    problems = []
    for name, sha256 in bundle.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif manifest.sha256_file(path) != sha256:
            problems.append(f"{name} was changed: its sha256 is not the one in {MANIFEST_NAME}")
    known = {*bundle.files, MANIFEST_NAME}
    present = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    foreign = [p for p in present if p.as_posix() not in known and not any(part.startswith(".") for part in p.parts)]
    return problems + [f"{path.as_posix()} is not listed in {MANIFEST_NAME}" for path in foreign]
