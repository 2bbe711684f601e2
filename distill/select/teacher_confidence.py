"""LLKD's gate with the teacher's signal alone, for comparison: rows of which it is sure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from edgestill.distill.select.gated import GatedSelection, check_teacher

if TYPE_CHECKING:
    from edgestill.distill.recipe import Recipe
    from edgestill.distill.student.gate import Gate


class ByTeacherConfidence(GatedSelection):
    """Selected: c >= tauT(y), of weight c."""

    strategy: Literal["teacher_confidence"] = "teacher_confidence"

    def check(self, recipe: "Recipe") -> None:
        """See `GatedSelection`; an endpoint that is asked for labels alone tells no confidence."""
        super().check(recipe)
        check_teacher(self.strategy, recipe)

    def gate(self, labels: Sequence[str]) -> "Gate":
        """The teacher's signal."""
        from edgestill.distill.select.moving_gate import MovingGate, TeacherConfidence

        return MovingGate(labels, self.weighted, {"teacher": TeacherConfidence(labels, self)})
