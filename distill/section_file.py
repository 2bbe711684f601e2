"""A YAML file as the sections it should hold: every mistake is one line with the key, what was found and what is known.

Knows no section; see `recipe` and `experiment.section`.
"""

import difflib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgestill.runtime.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def read_mapping(path: Path, what: str, hint: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        path: the file.
        what: what kind of file it should be, such as "recipe".
        hint: what to type for one.

    Raises:
        UsageError: missing file, not YAML, a key that stands twice, or no mapping.
    """
    import yaml

    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _loader())
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"no {what} file {path}", f"name a .yaml file; {hint}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds {type(data).__name__}, wanted the sections of a {what}", hint)
    return data


def checked(cls: type[Model], data: dict[str, Any], where: str, tags: Collection[str] = ()) -> Model:
    """`data` as a `cls`.

    Args:
        cls: a pydantic model.
        data: what a file holds.
        where: said before the problem.
        tags: names of alternatives in pydantic's places, which stand in nobody's file.

    Raises:
        UsageError: the first problem, in one line; of an unknown key the nearest known one.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first_problem(error, cls, tags)}") from None


def _loader() -> Any:
    """YAML's safe loader, but a key that stands twice is an error: the first would be lost without a word."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ValueError(f"the key {twice!r} stands twice, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    return Loader


def _first_problem(error: ValidationError, cls: type[BaseModel], tags: Collection[str]) -> str:
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [part for part in problem["loc"] if part not in tags]
    place = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(cls, [part for part in location[:-1] if isinstance(part, str)])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        return f"unknown key {place}; nearest known key: {close[0] if close else known[0]} (known: {', '.join(known)})"
    if problem["type"] == "missing":
        return f"{place} is missing"
    said = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {said} (found {problem['input']!r:.80})" if place else said  # of the whole file: it says what


def _known_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        model = next(_models(model.model_fields[part].annotation))
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections inside an annotation, from the outside in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
