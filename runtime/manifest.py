"""Frozen dataclass <-> JSON file: schema version, hashes, atomic write. Does not know what any manifest means.

A folder with its manifest is whole; a folder without one is rubble. Writers therefore write the manifest last.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgestill.runtime.errors import EdgestillError

T = TypeVar("T")
PARTIAL_SUFFIX = ".partial"
LATER = {"later": True}  # metadata of a field that came into its schema after the first files: it may be missing


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes (FIPS 180-4)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a value's canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one, also after a power cut."""
    _write_atomic(path, [text])


def _write_atomic(path: Path, pieces: typing.Iterable[str]) -> None:
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error(path, error) from error


def write_json(path: Path, value: object) -> None:
    """Write a JSON object atomically, indented for people."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: typing.Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically; rows are taken one by one."""
    _write_atomic(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        EdgestillError: the file is missing or a line is not a JSON object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise EdgestillError(f"{path}:{number} holds {type(value).__name__}, wanted a JSON object")
                yield value
    except FileNotFoundError:
        raise EdgestillError(f"no file {path}", "check the path, or run the command that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EdgestillError(f"{path} is not JSON lines: {error}", "one JSON object a line, UTF-8") from None


def disk_error(path: Path, error: Exception) -> EdgestillError:
    """Say in one line why `path` could not be written, with the space that is left."""
    folder = next((p for p in [path, *path.parents] if p.is_dir()), Path("/"))
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    return EdgestillError(
        f"cannot write {path}: {getattr(error, 'strerror', None) or error} ({free_mb} MB free there)",
        "make room or name another folder with --out, then run the same command",
    )


def save(path: Path, manifest: Any) -> None:
    """Write a frozen dataclass that has a `schema` field as JSON, atomically."""
    write_json(path, dataclasses.asdict(manifest))


def load(cls: type[T], path: Path) -> T:
    """Read what `save` wrote.

    Raises:
        EdgestillError: missing file, not JSON, another schema, a missing or unknown key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EdgestillError(f"{path} is missing: the folder is not whole", "run the command that makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EdgestillError(f"{path} is not JSON ({error})", "the file was changed; build it again") from None
    wanted = {f.name: f.default for f in dataclasses.fields(cls)}.get("schema")  # type: ignore[arg-type]
    found = data.get("schema") if isinstance(data, dict) else None
    if found != wanted:
        raise EdgestillError(f"{path} has schema {found!r}, wanted {wanted!r}", "use the edgestill that wrote it")
    return _build(cls, data, str(path))


def _build(cls: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `cls`; dataclasses, tuples, dicts and optionals, nested."""
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if dataclasses.is_dataclass(cls) and isinstance(cls, type):
        hints = typing.get_type_hints(cls)
        late = {field.name for field in dataclasses.fields(cls) if field.metadata == LATER}
        if not isinstance(value, dict) or not set(hints) - late <= set(value) <= set(hints):
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise EdgestillError(f"{where} holds {found}, wanted the keys {sorted(hints)}")
        return cls(**{key: _build(hints[key], value[key], f"{where}:{key}") for key in hints if key in value})
    if origin is tuple and isinstance(value, list):
        return tuple(_build(arguments[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _build(arguments[1], item, where) for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in arguments if a is not type(None)]
        return None if value is None else _build(inner[0], value, where)
    if origin in (tuple, dict):
        raise EdgestillError(
            f"{where} holds {type(value).__name__}, wanted a {'list' if origin is tuple else 'mapping'}"
        )
    return value
