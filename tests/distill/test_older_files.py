"""Files that an earlier version of the package wrote: they are read, so that what they stand for is made anew."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from edgestill.distill.ledger import Ledger
from edgestill.distill.run import StudentRun
from edgestill.distill.student.onto_grid import Gap, OnGrid
from edgestill.distill.student.train import Training
from edgestill.runtime import manifest


def default(kind: Any, name: str) -> Any:
    return next(one.default for one in dataclasses.fields(kind) if one.name == name)


def earlier(kind: Any, lacking: set[str]) -> dict[str, Any]:
    """A file's content without the keys that came into its schema since."""
    names = [one.name for one in dataclasses.fields(kind)]
    assert lacking < set(names)
    gap = {one.name: None for one in dataclasses.fields(Gap)}
    of_type = {Gap: gap, dict: {}}
    hints = {name: typing.get_origin(hint) or hint for name, hint in typing.get_type_hints(kind).items()}
    found = {name: of_type.get(hints[name]) for name in names if name not in lacking}
    return {**found, "schema": default(kind, "schema")}


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        (Training, {"gate"}),
        (Training, {"gate", "epochs", "trained_parameters", "processes", "resumed_at_step"}),
        (Ledger, {"selection", "rationale_facts"}),
        (Ledger, {"selection", "rationale_facts", "not_selected"}),
        (StudentRun, {"student", "grid"}),
        (OnGrid, {"shipped"}),
    ],
)
def test_keys_that_came_later_may_be_missing(kind: Any, lacking: set[str], tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(earlier(kind, lacking)), encoding="utf-8")
    found = manifest.load(kind, path)
    assert all(getattr(found, name) == default(kind, name) for name in lacking)
