"""What decides at each step of training which rows of the batch count, and how much. Knows no model."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgestill.distill.teacher.protocol import Annotation


class Gate(Protocol):
    """Is asked at every step, in order; may keep state, which `state` and `restore` carry over a checkpoint."""

    def weights(self, answers: Sequence[Annotation], chances: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each of B rows counts, 0 for not at all, given the student's probabilities (B, L) now."""

    def state(self) -> dict[str, Any]:
        """What `restore` wants, of plain numbers and lists."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""

    def facts(self) -> dict[str, Any]:
        """What it did, for the run's manifest: unique rows used, their share, per class."""
