"""What transformers.js reads of a bundle beside its model files: labels, type of numbers, chat template, tokenizer.

The model files and their names are `build`'s. Our own runtime reads of all this the tokenizer only, to the same ids.
"""

import json
from pathlib import Path
from typing import Any

from edgestill.export.build import Build
from edgestill.runtime import manifest
from edgestill.runtime.task import Task

# transformers.js calls the numbers of a file by a name and finds the file by it: q4 is onnx/model_q4.onnx
DTYPES = {"model_q4": "q4"}


# The tokenizers library takes every character of the category N for a digit, transformers.js 4.3 only 0 to 9
DIGITS = {True: "Isolated", False: "Contiguous"}


def complete_files(build: Build) -> None:
    """Write into the bundle's copies what transformers.js looks for there and nowhere else."""
    path = build.folder / "config.json"
    manifest.write_json(path, {**build.config, **_hub_entries(build)})
    path, template = build.folder / "tokenizer_config.json", build.folder / "chat_template.jinja"
    if path.exists() and template.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        manifest.write_json(path, {**config, "chat_template": template.read_text(encoding="utf-8")})
    if not build.task.is_head:
        _spell_out_digits(build.folder / "tokenizer.json")


def _spell_out_digits(path: Path) -> None:
    """Replace the pre-tokenizer Digits by the split that it is, which both programs read alike."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    first = tokenizer["pre_tokenizer"]
    steps = first["pretokenizers"] if first and first["type"] == "Sequence" else [first]
    found = [step for step in steps if step and step["type"] == "Digits"]
    for step in found:
        behavior = DIGITS[step.pop("individual_digits")]
        step.update(type="Split", pattern={"Regex": r"\p{N}"}, behavior=behavior, invert=False)
    if found:
        manifest.write_text_atomic(path, json.dumps(tokenizer, ensure_ascii=False))


def how_to_load(path: Path) -> str:
    """The sentence about an ONNX file of a bundle: which options a user of transformers.js types."""
    if path.stem in DTYPES:
        return "transformers.js 4 loads this folder as it is."
    # fp32 is its word for a file name without an ending of its own
    return f"transformers.js 4 loads this folder with `{{ dtype: 'fp32', model_file_name: '{path.stem}' }}`."


def _hub_entries(build: Build) -> dict[str, Any]:
    path = build.path("onnx")
    numbers = DTYPES.get(path.stem) if path is not None else None
    entries: dict[str, Any] = {} if numbers is None else {"transformers.js_config": {"dtype": numbers}}
    return {**entries, **_label_entries(build.task)} if build.task.is_head else entries


def _label_entries(task: Task) -> dict[str, Any]:
    """Names of the head's outputs, and whether each of them is asked alone, as a model for text-classification has."""
    return {
        "id2label": {str(label.token_id): label.name for label in task.labels},
        "label2id": {label.name: label.token_id for label in task.labels},
        "problem_type": f"{'multi' if task.is_multilabel else 'single'}_label_classification",
    }
