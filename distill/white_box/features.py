"""Hidden states of a student beside a teacher's: which layers are compared, and how far apart they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_SQUARE = 1e-6


def layer_pairs(student_layers: int, teacher_layers: int, count: int | None) -> list[tuple[int, int]]:
    """(student's layer, teacher's layer), counted from 1, evenly over both; the last pair is the last of each.

    Args:
        student_layers: how many it has.
        teacher_layers: how many it has.
        count: of pairs, no more than the student has layers; None: as many.
    """
    count = min(count or student_layers, student_layers)
    return [
        (max(1, round(student_layers * i / count)), max(1, round(teacher_layers * i / count)))
        for i in range(1, count + 1)
    ]


class Features(torch.nn.Module):
    """Learnt projections from a student's width to the teacher's, one a pair of layers; none where they are equal."""

    def __init__(self, pairs: Sequence[tuple[int, int]], student_width: int, teacher_width: int) -> None:
        """Projections are orthogonal at first, from torch's generator; float32."""
        super().__init__()
        self.of_student, self.of_teacher = [own for own, _ in pairs], [theirs for _, theirs in pairs]
        count = 0 if student_width == teacher_width else len(pairs)
        maps = [torch.nn.Parameter(torch.empty(teacher_width, student_width)) for _ in range(count)]
        for projection in maps:
            torch.nn.init.orthogonal_(projection)
        self.projections = torch.nn.ParameterList(maps)

    def losses(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Sum over pairs of |W h_S - h_T|^2 / |h_T|^2 at each of N positions, (N,), no unit.

        The mean squared error of feature alignment (after arXiv 2412.19449, whose weights and map of layers are not
        known to us) relative to the teacher's mean square there, which is our reading: a transformer's hidden states
        grow by orders of magnitude with depth, and one weight is to mean the same for all layers and models.

        Args:
            student: (N, width) after each of `of_student`.
            teacher: (N, width) after each of `of_teacher`.
        """
        found = torch.zeros(len(student[0]))
        for place, (own, theirs) in enumerate(zip(student, teacher, strict=True)):
            own, theirs = own.float(), theirs.float()
            if self.projections:
                own = own @ self.projections[place].t()
            square = theirs.square().mean(-1).clamp_min(LEAST_SQUARE)
            found = found + (own - theirs).square().mean(-1) / square
        return found
