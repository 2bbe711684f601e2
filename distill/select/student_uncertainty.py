"""LLKD's gate with the student's signal alone, for comparison: rows of which it is unsure.

Needs no probabilities of the teacher.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from edgestill.distill.select.gated import GatedSelection

if TYPE_CHECKING:
    from edgestill.distill.student.gate import Gate


class ByStudentUncertainty(GatedSelection):
    """Selected: u >= tauS(y), of weight u."""

    strategy: Literal["student_uncertainty"] = "student_uncertainty"

    def gate(self, labels: Sequence[str]) -> "Gate":
        """The student's signal."""
        from edgestill.distill.select.moving_gate import MovingGate, StudentUncertainty

        return MovingGate(labels, self.weighted, {"student": StudentUncertainty(labels, self)})
