"""A teacher's likeliest tokens at each position of a completion, computed once and kept on disk.

The other tokens are one outcome, whose share is kept too. A divergence over these K + 1 outcomes is a lower bound of
that over the vocabulary (data-processing inequality), and is it where K is the whole of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgestill.distill.student.processes import Processes
from edgestill.distill.white_box.divergences import HEAD_ROWS, joined, log_shares
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

FOLDER_NAME, MANIFEST_NAME = "teacher-logits", "teacher-logits.json"
# Part of what stored distributions depend on: raise it when the same inputs would give others.
LOGITS_VERSION = 1
CHUNK_ROWS = 256


@dataclass(frozen=True)
class TopK:
    """Distributions at N positions, a `divergences.Wanted`.

    Shapes: ids (N, K) int32; logs (N, K + 1) float32 natural-log shares, the last of all other tokens, or (N, K) where
    K is the vocabulary.
    """

    ids: Tensor
    logs: Tensor

    def log_p(self, here: slice) -> tuple[Tensor, Tensor]:
        """See `Wanted`."""
        return self.logs[here], self.ids[here].long()

    def split(self, counts: Sequence[int]) -> list["TopK"]:
        """Of consecutive positions, so many each."""
        parts = zip(self.ids.split(list(counts)), self.logs.split(list(counts)), strict=True)
        return [TopK(*part) for part in parts]


def joined_rows(parts: Sequence[TopK]) -> TopK:
    """One after the other."""
    return TopK(torch.cat([part.ids for part in parts]), torch.cat([part.logs for part in parts]))


def top_k(hidden: Tensor, head: Tensor, count: int, temperature: float) -> TopK:
    """The `count` likeliest tokens of softmax(hidden head' / T), no more than there are: (N, H), (V, H)."""
    count = min(count, len(head))
    ids = torch.empty(len(hidden), count, dtype=torch.int32)
    logs = torch.empty(len(hidden), count + (count < len(head)))
    for start in range(0, len(hidden), HEAD_ROWS):
        here = slice(start, start + HEAD_ROWS)
        log_p = log_shares(hidden[here], head, temperature)
        likeliest = log_p.topk(count, -1).indices
        ids[here], logs[here] = likeliest.int(), joined(log_p, likeliest)
    return TopK(ids, logs)


@dataclass(frozen=True)
class TeacherLogits:
    """The manifest `teacher-logits.json`; `files` maps names to their SHA-256."""

    inputs_sha256: str
    rows: int
    positions: int
    files: dict[str, str]
    schema: str = "edgestill-teacher-logits/1"


class StoredLogits:
    """`TopK` of each row, read from its file when it is asked for."""

    def __init__(self, folder: Path, counts: Sequence[int]) -> None:
        """`counts` are the rows' positions, in order."""
        chunks = [counts[start : start + CHUNK_ROWS] for start in range(0, len(counts), CHUNK_ROWS)]
        self._ends = [list(accumulate(chunk)) for chunk in chunks]
        self._files = [safe_open(_chunk_path(folder, i), "pt") for i in range(len(chunks))]

    def __getitem__(self, place: int) -> TopK:
        """Of the row at a place."""
        chunk, row = divmod(place, CHUNK_ROWS)
        start, end = ([0, *self._ends[chunk]])[row : row + 2]
        return TopK(*(self._files[chunk].get_slice(name)[start:end] for name in ("ids", "logs")))


def store(
    folder: Path, counts: Sequence[int], inputs_sha256: str, compute: Callable[[slice], TopK], processes: Processes
) -> StoredLogits:
    """What `folder` holds of these inputs, and computed now what it lacks; the manifest is written last.

    A run that was stopped left whole files, which are taken. Files of other inputs are written anew. Several processes
    share the work.

    Args:
        folder: created.
        counts: positions of each row.
        inputs_sha256: names everything that the distributions depend on.
        compute: the distributions of the rows of a slice, one after the other.
        processes: those that do the same at this moment.

    Raises:
        EdgestillError: the files cannot be written.
    """
    chunks = range((len(counts) + CHUNK_ROWS - 1) // CHUNK_ROWS)
    if not _is_whole(folder, inputs_sha256):
        try:
            for first in chunks[:: processes.count]:
                mine = first + processes.index
                if mine in chunks and not _is_of(_chunk_path(folder, mine), inputs_sha256):
                    here = slice(mine * CHUNK_ROWS, (mine + 1) * CHUNK_ROWS)
                    _write(_chunk_path(folder, mine), compute(here), inputs_sha256)
                processes.wait()  # after each: a long wait at the end would be taken for a fault
        except (OSError, SafetensorError) as error:
            raise manifest.disk_error(folder, error) from error
        if processes.index == 0:
            files = {path.name: manifest.sha256_file(path) for path in (_chunk_path(folder, i) for i in chunks)}
            manifest.save(folder / MANIFEST_NAME, TeacherLogits(inputs_sha256, len(counts), sum(counts), files))
    processes.wait()
    return StoredLogits(folder, counts)


def _chunk_path(folder: Path, number: int) -> Path:
    return folder / f"rows-{number * CHUNK_ROWS:06}.safetensors"


def _write(path: Path, found: TopK, inputs_sha256: str) -> None:
    partial = path.with_suffix(manifest.PARTIAL_SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"ids": found.ids, "logs": found.logs}, partial, {"inputs_sha256": inputs_sha256})
    partial.replace(path)


def _is_of(path: Path, inputs_sha256: str) -> bool:
    """Whether a file is whole and was made of these inputs."""
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = file.metadata() or {}
            return facts.get("inputs_sha256") == inputs_sha256
    except (OSError, SafetensorError):
        return False


def _is_whole(folder: Path, inputs_sha256: str) -> bool:
    """Whether the manifest is of these inputs and its files are as listed; else it goes, with those that differ."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return False
    try:
        known = manifest.load(TeacherLogits, path)
    except EdgestillError:
        known = TeacherLogits("", 0, 0, {})
    files = {folder / name: sha256 for name, sha256 in known.files.items()}
    differ = [one for one, sha256 in files.items() if not one.is_file() or manifest.sha256_file(one) != sha256]
    if known.inputs_sha256 == inputs_sha256 and not differ:
        return True
    for one in [path, *differ]:
        one.unlink(missing_ok=True)
    return False
