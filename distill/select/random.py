"""Random rows: the control that every other strategy has to beat. Trains no student."""

from typing import TYPE_CHECKING, Literal

from edgestill.distill.select.rounds import Look, Rounds, lowest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Random(Rounds):
    """The rows with the lowest luck, all in one round: with the same seed, fewer `rows` are a part of more."""

    strategy: Literal["random"] = "random"

    def rank(self, look: Look, count: int) -> "NDArray[np.intp]":
        """See `Rounds`."""
        return lowest(look.luck, look.luck, count)
