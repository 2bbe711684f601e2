"""A recipe's files and its base: as absolute paths, so that a cell's recipe may lie anywhere, and as hashes of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgestill.distill.base import prepare_base
from edgestill.distill.recipe import resolve
from edgestill.distill.student_section import StudentSection
from edgestill.runtime import manifest
from edgestill.runtime.errors import UsageError

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
    """SHA-256 of every file that the sections name, and of the base's weights, which is prepared for it.

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
    return found | {"student.base": prepare_base(base, recipe_path.parent).weights_sha256}


def _named(sections: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for section, key in FILES:
        value = sections.get(section, {}).get(key)
        if isinstance(value, str):
            yield section, key, value
