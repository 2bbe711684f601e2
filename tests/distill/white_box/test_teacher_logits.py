"""Stored distributions: whole or not there, gone on with after a stop, made anew for other inputs."""

import json
from pathlib import Path

import pytest
import torch

from edgestill.distill.student.processes import Processes
from edgestill.distill.white_box.teacher_logits import CHUNK_ROWS, MANIFEST_NAME, TopK, store
from edgestill.runtime.errors import EdgestillError

COUNTS = [1 + place % 3 for place in range(2 * CHUNK_ROWS + 40)]


class Asked:
    """A teacher that says the row's number, and counts what it is asked; stops after so many chunks."""

    def __init__(self, chunks: int | None = None) -> None:
        self.slices: list[int] = []
        self.left = chunks

    def __call__(self, here: slice) -> TopK:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        self.slices.append(here.start)
        places = [place for place in range(len(COUNTS))[here] for _ in range(COUNTS[place])]
        ids = torch.tensor(places, dtype=torch.int32)[:, None].expand(-1, 2).contiguous()
        return TopK(ids, -torch.rand(len(places), 3))


def test_each_row_finds_its_own_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    asked = Asked()
    stored = store(tmp_path / "logits", COUNTS, "one", asked, Processes())
    assert asked.slices == [0, CHUNK_ROWS, 2 * CHUNK_ROWS]
    again = store(tmp_path / "logits", COUNTS, "one", Asked(0), Processes())
    for place in (0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, len(COUNTS) - 1):
        for found in (stored[place], again[place]):
            assert found.ids.tolist() == [[place, place]] * COUNTS[place]
            assert found.logs.shape == (COUNTS[place], 3)
    assert torch.equal(stored[7].logs, again[7].logs)


def test_a_stopped_run_goes_on_where_it_was_and_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "logits", COUNTS, "one", Asked(2), Processes())
    assert not (tmp_path / "logits" / MANIFEST_NAME).exists()
    asked = Asked()
    store(tmp_path / "logits", COUNTS, "one", asked, Processes())
    assert asked.slices == [2 * CHUNK_ROWS]
    facts = json.loads((tmp_path / "logits" / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert (facts["rows"], facts["positions"], len(facts["files"])) == (len(COUNTS), sum(COUNTS), 3)


def test_other_inputs_and_changed_files_are_computed_anew(tmp_path: Path) -> None:
    folder = tmp_path / "logits"
    store(folder, COUNTS, "one", Asked(), Processes())
    asked = Asked()
    store(folder, COUNTS, "two", asked, Processes())
    assert len(asked.slices) == 3
    some = sorted(folder.glob("*.safetensors"))[1]
    some.write_bytes(some.read_bytes()[:-1] + b"\xff")
    asked = Asked()
    store(folder, COUNTS, "two", asked, Processes())
    assert asked.slices == [CHUNK_ROWS]  # the changed file alone: the others are as they were listed


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "logits").write_text("a file", encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"cannot write .*logits"):
        store(tmp_path / "logits", COUNTS, "one", Asked(), Processes())
