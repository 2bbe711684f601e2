"""What tests of the runtime start from: a tiny decoder built from recorded answers, it served, a calibrated encoder."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from encoder_runs import LABELS, export_section, finish_run, shake, silent
from written_runs import a_task, choosing_task, colours, legs, written_bundle

from edgestill.runtime import Student, load, manifest
from edgestill.runtime.serving.server import Limits, Options, StudentServer
from edgestill.runtime.stages import Stages
from edgestill.runtime.task import load_tokenizer

Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_rows: Callable[[Path], Path]) -> Path:
    """A student that tells red from green and writes reasons that mean little."""
    folder = tmp_path_factory.mktemp("served")
    recipe = tiny_rows(folder)
    text = recipe.read_text(encoding="utf-8").replace("{pool: ", "{max_text_tokens: 40, pool: ")
    recipe.write_text(text.replace("kind: replay,", "kind: replay, model: big-teacher,"), encoding="utf-8")
    stages = Stages(recipe, folder / "run")
    stages.annotate()
    stages.train()
    stages.export()
    return folder / "run" / "bundle"


@pytest.fixture(scope="session")
def tiny_student(tiny_bundle: Path) -> Student:
    return load(tiny_bundle, "onnx", threads=1)


@pytest.fixture
def serve(tiny_student: Student) -> Serve:
    """`with serve(**options) as server`: any free port; `student=` another one, limits by their names."""

    @contextmanager
    def serving(student: Student = tiny_student, **changes: Any) -> Iterator[StudentServer]:
        limits = {name: changes.pop(name) for name in list(changes) if name in Limits.__dataclass_fields__}
        server = StudentServer(student, replace(Options(port=0, limits=Limits(**limits)), **changes))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop(grace_s=5.0)
            thread.join(5.0)

    return serving


@pytest.fixture(scope="session")
def writers(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    """Bundles of students that know a few rows: `plain` writes a number, `chain` its reason first, `choose` a letter.

    The first is for both engines.
    """
    folder, choosing = tmp_path_factory.mktemp("writers"), choosing_task(load_tokenizer(tiny_base))
    chain = a_task(chain=True, max_answer_tokens=24)
    return {
        "plain": written_bundle(folder / "plain", tiny_base, a_task(), legs(a_task()), "onnx", "gguf"),
        "chain": written_bundle(folder / "chain", tiny_base, chain, legs(chain)),
        "choose": written_bundle(folder / "choose", tiny_base, choosing, colours()),
    }


SAID = ("is it raining in {}", "play music from {}", "lights off in {}", "{}")
PLACES = ("Lisbon", "the hall", "Rome", "my room", "Oslo", "the attic", "Kyiv", "a tent", "Quito", "the shed", "here",
          "Leeds", "the garden", "Minsk", "our flat")  # fmt: skip


@pytest.fixture(scope="session")
def encoder_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Random weights in both engines, calibrated on 60 rows whose labels have nothing to do with their texts."""
    import torch

    from edgestill.distill.student.encoder import new_encoder
    from edgestill.export.pack import run_export

    torch.manual_seed(0)
    encoder = new_encoder(tiny_encoder, len(LABELS))
    shake(encoder, 0.2)
    folder = tmp_path_factory.mktemp("calibrated")
    finish_run(folder / "student", encoder)
    texts = [said.format(place) for place in PLACES for said in SAID]
    rows = [{"id": str(i), "text": text, "label": LABELS[i % 3]} for i, text in enumerate(texts)]
    manifest.write_jsonl(folder / "student" / "dev.jsonl", rows)
    run_export(folder / "student", export_section("q8_0"), folder / "bundle", silent)
    return folder / "bundle"
