"""A live teacher on a scripted server: asked over real HTTP, with a cache and a run's folder of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer

from edgestill.distill.annotate import annotate, read_annotations
from edgestill.distill.dataset import Dataset, Row, row_id
from edgestill.distill.ledger import Answer, Ledger
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.open import open_teacher
from edgestill.runtime.errors import EdgestillError

LABELS = ["red", "green", "deep blue"]
PRICE = {"input": "0.15", "output": "0.60"}


def a_dataset(texts: list[str]) -> Dataset:
    return Dataset(
        tuple(Row(row_id(text), text, None, ("train", "dev", "test")[i % 3]) for i, text in enumerate(texts))
    )


@dataclass
class Asking:
    """One run's folder; `ask` annotates texts against a server and may be called again, as the command may."""

    folder: Path
    url: str = ""
    teacher: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    stopped: EdgestillError | None = None

    def recipe(self) -> Recipe:
        section = {"kind": "openai", "model": "scripted", "base_url": self.url, "backoff_s": 0.01, "timeout_s": 5}
        section |= {"price_usd_per_mtok": PRICE, "smoke_rows": 0, "concurrency": 8}
        task = {"instruction": "Which colour?", "labels": LABELS} | self.task
        return Recipe.model_validate(
            {"name": "asked", "task": task, "data": {"pool": "pool.jsonl"}}
            | {"teacher": section | self.teacher, "budget": self.budget, "student": self.student}
        )

    def ask(self, texts: list[str]) -> Ledger:
        recipe, data = self.recipe(), a_dataset(texts)
        teacher = open_teacher(recipe, self.folder / "recipe.yaml", self.folder, data.rows)
        try:
            ledger, self.stopped = annotate(recipe, data, teacher, lambda text: True, self.folder)
        finally:
            teacher.close()
        assert ledger.rows == len(texts) == ledger.accepted + sum(ledger.rejected.values()) + ledger.pending
        return ledger

    def answers(self) -> dict[str, Answer]:
        return {row.text: answer for row, answer in read_annotations(self.folder)}


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asking:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    return Asking(tmp_path / "annotations")


@pytest.fixture
def serve(asking: Asking) -> Iterator[Callable[..., ScriptedServer]]:
    """Start a server with a script; the run asks the one that was started last."""
    running: list[ScriptedServer] = []

    def start(script: Any = None, **options: Any) -> ScriptedServer:
        server = ScriptedServer(**({"script": script} if script is not None else {}), **options).__enter__()
        running.append(server)
        asking.url = server.url
        return server

    yield start
    for server in running:
        server.__exit__(None, None)
