"""A recipe's files and its base: as absolute paths, so that a cell's recipe may lie anywhere, and as hashes of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgestill.distill.base import TOKENIZER_FILES, prepare_base
from edgestill.distill.dataset import row_id
from edgestill.distill.recipe import check_recipe, resolve
from edgestill.distill.student_section import StudentSection
from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.open import teacher_fingerprint
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

FILES = (("data", "pool"), ("data", "test"), ("data", "corrections"), ("teacher", "path"))


def anchored(sections: dict[str, Any], recipe_path: Path) -> dict[str, Any]:
    """The sections with absolute paths where they named files relative to `recipe_path`."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in sections.items()}
    whole = recipe_path.resolve()
    for section, key, value in _named(sections):
        found[section][key] = resolve(whole, value)
    base = found.get("student", {}).get("base")
    folder = whole.parent / Path(base).expanduser() if isinstance(base, str) else None
    if folder is not None and folder.is_dir():
        found["student"]["base"] = str(folder)
    return found


def input_hashes(sections: dict[str, Any], recipe_path: Path) -> dict[str, str]:
    """SHA-256 of every file that the sections name, of what the teacher says it is, and of the base, once prepared.

    A data set of a hub is known by its name alone, and so is what an endpoint would answer today.

    Raises:
        EdgestillError: a file or a base is missing.
    """
    found = {}
    for section, key, value in _named(sections):
        path = Path(resolve(recipe_path, value))
        if path.suffix and not path.exists() and resolve(recipe_path, value) != value:
            raise UsageError(f"{section}.{key}: no file {path}", "paths are relative to the recipe")
        if path.is_file():
            found[f"{section}.{key}"] = manifest.sha256_file(path)
    base = sections.get("student", {}).get("base", StudentSection().base)
    prepared = prepare_base(base, recipe_path.parent)
    beside = [p for name in ("config.json", *TOKENIZER_FILES) if (p := Path(prepared.folder) / name).is_file()]
    found["student.base"] = manifest.sha256_json([prepared.weights_sha256, *map(manifest.sha256_file, beside)])
    recipe = check_recipe(sections, str(recipe_path))
    return found | {"teacher": teacher_fingerprint(recipe, recipe_path)}


def gold_of_pool(path: Path, task: TaskSection) -> dict[str, str]:
    """Gold labels by row id, out of JSON lines of text and label.

    Raises:
        EdgestillError: the file or a line cannot be read, or a label is not the task's; it names the row.
    """
    found = {}
    for number, record in enumerate(manifest.read_jsonl(path), 1):
        lacking = next((key for key in ("text", "label") if key not in record), None)
        if lacking is not None:
            raise EdgestillError(f"{path}: row {number} has no field {lacking!r}", "write text and label in each line")
        text = str(record["text"])
        try:
            found[row_id(text)] = task.read(record["label"], text)
        except EdgestillError as error:
            raise EdgestillError(f"{path}: row {number}: {error}") from None
    return found


def _named(sections: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for section, key in FILES:
        value = sections.get(section, {}).get(key)
        if isinstance(value, str):
            yield section, key, value
