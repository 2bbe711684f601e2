"""One export while it is under way: what every step needs, and the steps that each kind of student takes alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.distill.run import StudentRun
from edgestill.export.grid import Floats, Grid, Kind
from edgestill.runtime.bundle import ONNX, ONNX_LABELS
from edgestill.runtime.errors import UsageError
from edgestill.runtime.task import Task

Reader = Callable[[Path, dict[str, Any]], Iterator[tuple[str, Floats]]]
Logits = Callable[[list[int]], NDArray[np.float32]]


@dataclass(frozen=True)
class Build:
    """What every step of one export needs: the run in the folder `student`, and the bundle's `folder` to be."""

    run: StudentRun
    student: Path
    folder: Path
    task: Task
    config: dict[str, Any]
    artifacts: tuple[str, ...]
    quantization: Kind

    def path(self, engine: str) -> Path | None:
        """Where an engine's file goes; None when it is not built."""
        short = self.quantization.split("_")[0]
        names = {
            ONNX: f"onnx/model_{short}.onnx",
            ONNX_LABELS: f"onnx/labels_{short}.onnx",
            "gguf": f"gguf/model-{self.quantization}.gguf",
        }
        return self.folder / names[engine] if engine in self.artifacts else None

    def relative(self, path: Path) -> str:
        """A path of the bundle as its manifest writes it."""
        return path.relative_to(self.folder).as_posix()


def engines_of(export: Mapping[str, Any], task: Task) -> tuple[str, ...]:
    """What is built by the recipe's section: its artifacts, and of a student that writes the graph that only labels.

    Raises:
        UsageError: such a graph for a task that generates, which has no labels.
    """
    specialised = export.get("specialise") and not task.is_head
    if specialised and task.is_written:
        raise UsageError("export.specialise: a graph that only labels, but the task generates", "take it away")
    return (*export["artifacts"], *((ONNX_LABELS,) if specialised else ()))


class Compiler(ABC):
    """One kind of student on its way from trained weights to files. Holds the weights between the steps."""

    def __init__(self, build: Build) -> None:
        """Nothing is read yet."""
        self.build = build

    @abstractmethod
    def read(self, probes: list[list[int]]) -> dict[str, Any]:
        """Load the trained weights in float32; what the check of them on a few prompts' token ids measured."""

    @abstractmethod
    def grid(self) -> Grid:
        """The weights, rounded to the grid."""

    @abstractmethod
    def write(self, grid: Grid, texts: list[str]) -> dict[str, Any] | None:
        """Write all model files; what the gate of token ids measured, None where it had nothing to compare."""

    @abstractmethod
    def readers(self) -> Mapping[str, Reader]:
        """How the numbers of each engine's file are read back."""

    @abstractmethod
    def logits(self, grid: Grid) -> Logits:
        """Token ids -> logits of torch's float32 product with the grid's values. Overwrites the weights."""

    @abstractmethod
    def context_tokens(self) -> int:
        """Longest input of the model, in tokens."""

    @abstractmethod
    def for_other_programs(self) -> str:
        """What the model card says about programs other than ours."""
