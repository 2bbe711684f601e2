"""Rows whose two likeliest answers are nearest to each other (Scheffer, Decomain, Wrobel 2001; Settles 2009, 3.1)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from edgestill.distill.select.least_confidence import log_confidence
from edgestill.distill.select.rounds import Look, Need, Rounds, lowest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Margin(Rounds):
    """Asks where p1 - p2 is lowest.

    Of sets (our reading) p1 and p2 are those of the two likeliest sets, with labels independent: they differ in the
    label that is nearest to 0.5.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"probabilities"})
    strategy: Literal["margin"] = "margin"

    def rank(self, look: Look, count: int) -> "NDArray[np.intp]":
        """See `Rounds`."""
        return lowest(margins(look.probabilities, look.sets), look.luck, count)


def margins(probabilities: "NDArray[np.float64]", sets: bool) -> "NDArray[np.float64]":
    """(R,) p1 - p2 from (R, L); of sets its logarithm in nats, which does not vanish with many labels."""
    import numpy as np

    if not sets:
        ordered = np.sort(probabilities, -1)
        return ordered[:, -1] - ordered[:, -2]
    nearest = np.maximum(probabilities, 1 - probabilities).min(-1)  # p1 - p2 = p1 * (1 - (1 - nearest) / nearest)
    with np.errstate(divide="ignore"):  # at 0.5 the two are equal: minus infinity is the right place for it
        return log_confidence(probabilities, sets=True) + np.log(2 - 1 / nearest)
