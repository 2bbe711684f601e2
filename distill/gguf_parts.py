"""A GGUF file that a package index holds in pieces, one package a piece, put together once."""

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

COPY_BYTES = 1 << 20
SUMS = "SHA256SUMS"


def joined_file(name: str, folder: Path, cache: Path) -> Path | None:
    """The whole file of the package `name`; None where none of its requirements holds a piece.

    Pieces are files NAME.gguf.partNN of required packages; they are joined in the order of their names.

    Args:
        name: import name of the package.
        folder: where it is installed; a SHA256SUMS somewhere in it says what the whole must hash to.
        cache: where the whole is kept.

    Raises:
        EdgestillError: a required package is missing, or the whole does not hash to what was promised.
    """
    pieces = [piece for package in _required(name) for piece in _folder(package, name).rglob("*.gguf.part*")]
    if not pieces:
        return None
    pieces.sort(key=lambda piece: piece.name)
    whole = cache / pieces[0].name.rsplit(".part", 1)[0]
    if not whole.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _join(pieces, whole, next(folder.rglob(SUMS), None))
    return whole


def _join(pieces: list[Path], whole: Path, sums: Path | None) -> None:
    partial = whole.with_suffix(f".{os.getpid()}")
    try:
        with partial.open("wb") as out:
            for piece in pieces:
                with piece.open("rb") as part:
                    while block := part.read(COPY_BYTES):
                        out.write(block)
        if sums is not None and manifest.sha256_file(partial) not in sums.read_text(encoding="utf-8"):
            raise EdgestillError(
                f"the {len(pieces)} pieces of {whole.name} do not make the file that {sums} promises",
                "install the packages again",
            )
        partial.replace(whole)
    except OSError as error:
        raise manifest.disk_error(whole.parent, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _required(name: str) -> list[str]:
    """Import names of what the package's distribution requires; its own stays what it is."""
    for distribution in importlib.metadata.packages_distributions().get(name, []):
        wanted = [line for line in importlib.metadata.requires(distribution) or [] if "extra ==" not in line]
        return [re.split(r"[^\w.-]", line, maxsplit=1)[0].replace("-", "_") for line in wanted]
    return []


def _folder(package: str, name: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise EdgestillError(
            f"the package {package}, which {name} needs, is not installed",
            f"type: pip install {name.replace('_', '-')}",
        )
    return Path(found.submodule_search_locations[0])
