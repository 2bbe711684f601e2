"""Bundles without model files, and measurements of them, written by hand: 40 rows, two labels and one never given."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from edgestill.benchmarks.entrants import read_entrants
from edgestill.benchmarks.folder import write_folder
from edgestill.benchmarks.measurement import (
    VALID,
    Decoding,
    Energy,
    GoldenCheck,
    Loads,
    Machine,
    Measurement,
    Memory,
    Noise,
    Request,
    Thermal,
)
from edgestill.benchmarks.reference import read_reference
from edgestill.benchmarks.report import Report, asked_rows, build_report
from edgestill.runtime import manifest
from edgestill.runtime.bundle import Artifact, Bundle
from edgestill.runtime.device import describe_device
from edgestill.runtime.stages import Stages
from edgestill.runtime.task import Label, Task

ROWS = 40
GOLD = ["yes", "no"] * (ROWS // 2)
OTHER = {"yes": "no", "no": "yes"}


def with_mistakes(rows: Sequence[int], truth: Sequence[str] = tuple(GOLD)) -> list[str]:
    """`truth` with the other label on `rows`."""
    return [OTHER[label] if i in rows else label for i, label in enumerate(truth)]


@dataclasses.dataclass(frozen=True)
class Handmade:
    """A folder that looks like a bundle to benchmarks, and the measurement of its artifact."""

    folder: Path
    measurement: Measurement

    def report(self) -> Report:
        return joint_report([self])


def joint_report(made: Sequence[Handmade]) -> Report:
    """One report over several handmade bundles."""
    folders, measurements = [m.folder for m in made], [m.measurement for m in made]
    entrants = read_entrants(folders)
    reference = asked_rows(read_reference(entrants), measurements)
    return build_report(entrants, reference, measurements, describe_device(), "2026-11-21T00:00:00Z")


@pytest.fixture
def joint() -> Callable[[Sequence[Handmade]], Report]:
    return joint_report


@pytest.fixture
def handmade(tmp_path: Path) -> Callable[..., Handmade]:
    """Write one; every argument is the labels of a system, `gold=None` a recipe without gold, the rest the task's.

    A bundle of another student lies in a folder of its name.
    """

    def make(
        gold: Sequence[str] | None = tuple(GOLD),
        teacher: Sequence[str] = tuple(with_mistakes([0, 1])),
        floor: Sequence[str] | None = tuple(with_mistakes(range(20))),
        artifact: Sequence[str] = tuple(with_mistakes([0, 1, 2, 3])),
        latencies_ms: Sequence[float | None] = tuple(float(i + 1) for i in range(ROWS)),
        name: str = "handmade",
        student: str = "student",
        base: Sequence[str] | None = None,
        torch: Sequence[str] | None = None,
        none: str | None = None,
        size_bytes: int = 90_000_000,
        kind: str = "classify",
        **task: object,
    ) -> Handmade:
        folder = tmp_path / ("bundle" if student == "student" else student)
        (folder / "bundle.json").unlink(missing_ok=True)
        _write_reference(folder / "reference", gold, teacher, {"floor": floor, "base": base, "student": torch})
        manifest.save(folder / "task.json", dataclasses.replace(_task(none, kind), **task))
        files = {p.relative_to(folder).as_posix(): manifest.sha256_file(p) for p in folder.rglob("*") if p.is_file()}
        manifest.save(folder / "bundle.json", _bundle(name, student, files))
        measured = measurement(artifact, latencies_ms, student)
        return Handmade(folder, dataclasses.replace(measured, bytes=size_bytes))

    return make


def measurement(labels: Sequence[str], latencies_ms: Sequence[float | None], student: str = "student") -> Measurement:
    """One round over the rows with these answers and times."""
    requests = tuple(
        Request("onnx", f"row-{i}", 0, label, {"yes": 0.5, "no": 0.5, "never": 0.0}, latency_ms, 7, student, 0.5)
        for i, (label, latency_ms) in enumerate(zip(labels, latencies_ms, strict=True))
    )
    return Measurement(
        inputs_sha256="0" * 64,
        engine="onnx",
        path="onnx/model_q4.onnx",
        quantization="q4_0",
        bytes=90_000_000,
        threads=2,
        machine=Machine("local", "local"),
        loads=Loads(0.2, (0.9,), "posix_fadvise", (0.3, 0.31), 40.0),
        decoding=Decoding(None, (), (), None, None),
        offline_rows_per_s=None,
        memory=Memory(None, 200_000_000, None, 300_000_000, None, None, None, "proc_status"),
        energy=Energy(None, None, None, None, None),
        thermal=Thermal(None, None, None, None, None, None),
        noise=Noise(None, None, None, None),
        golden=GoldenCheck(32, 0, 0.01),
        validity=VALID,
        reasons=(),
        requests=requests,
        student=student,
    )


def _write_reference(
    place: Path, gold: Sequence[str] | None, teacher: Sequence[str], systems: Mapping[str, Sequence[str] | None]
) -> None:
    ids = [f"row-{i}" for i in range(ROWS)]
    test = [{"id": row, "text": row, "gold": None if gold is None else gold[i]} for i, row in enumerate(ids)]
    manifest.write_jsonl(place / "test.jsonl", test)
    answers = [{"row_id": row, "label": teacher[i], "latency_ms": None} for i, row in enumerate(ids)]
    manifest.write_jsonl(place / "teacher.jsonl", answers)
    found = {system: labels for system, labels in systems.items() if labels is not None}
    rows = [_prediction(system, row, found[system][i], i) for system in found for i, row in enumerate(ids)]
    manifest.write_jsonl(place / "predictions.jsonl", rows)


def _prediction(system: str, row_id: str, label: str, number: int) -> dict[str, object]:
    return {
        "system": system,
        "row_id": row_id,
        "label": label,
        "latency_ms": 0.5,
        "load_s": 0.01,
        "peak_rss_bytes": 1000 + number,
        "bytes": 500_000,
        "note": "TF-IDF" if system == "floor" else "float32",
    }


def _task(none: str | None, kind: str) -> Task:
    return Task(
        kind=kind,
        instruction="Is it so?",
        labels=tuple(Label(name, "", number, f" {name}") for number, name in enumerate(("yes", "no", "never"))),
        text="{text}",
        answer="path",
        answer_suffix="\nAnswer:",
        rationale_suffix=None,
        max_text_tokens=64,
        too_long="cut_tail",
        bos_token_id=None,
        eos_token_id=0,
        none=none,
    )


def _bundle(name: str, student: str, files: dict[str, str]) -> Bundle:
    return Bundle(
        name=name,
        created="2026-11-20T00:00:00Z",
        license_note="",
        base={"spec": "tiny"},
        teacher={"name": "a large model", "kind": "replay", "license_note": "free", "usd_per_1000_requests": 1.84},
        artifacts=(Artifact("onnx", "onnx/model_q4.onnx", "q4_0", 4, 90_000_000, 4.5),),
        files=files,
        chain={},
        versions={"torch": "2"},
        parity={},
        rows={"test": ROWS},
        context_tokens=128,
        parameters=1000,
        student=student,
    )


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_rows: Callable[[Path], Path]) -> Path:
    """A real bundle of a two-layer student, with both engines and 16 test rows. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("tiny")
    stages = Stages(tiny_rows(folder), folder / "run")
    stages.annotate()
    stages.train()
    stages.export()
    return folder / "run" / "bundle"


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a report's folder of a handmade bundle; `changes` are of its measurement, `device` of the machine."""

    def write(
        made: Handmade,
        name: str,
        device: Mapping[str, object] | None = None,
        left_out: Sequence[str] = (),
        also: Sequence[Measurement] = (),
        **changes: object,
    ) -> Path:
        measured = [dataclasses.replace(made.measurement, **changes), *also]
        there = dataclasses.replace(describe_device(), **(device or {}))
        entrants = read_entrants([made.folder])
        reference = asked_rows(read_reference(entrants), measured)
        report = build_report(entrants, reference, measured, there, "2026-11-21T00:00:00Z", left_out)
        write_folder(tmp_path / name, report, reference, measured)
        return tmp_path / name

    return write
