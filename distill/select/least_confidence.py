"""Rows whose likeliest answer is the least likely (Lewis and Gale 1994, arXiv cmp-lg/9407020; Settles 2009, 3.1)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from edgestill.distill.select.rounds import Look, Need, Rounds, lowest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LeastConfidence(Rounds):
    """Asks where max p is lowest.

    Lewis and Gale have two classes and take what is nearest to 0.5; max p is Settles' form for more. Of sets (our
    reading) p is that of a whole set, with labels independent: the product over the labels of max(p, 1 - p).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"probabilities"})
    strategy: Literal["least_confidence"] = "least_confidence"

    def rank(self, look: Look, count: int) -> "NDArray[np.intp]":
        """See `Rounds`."""
        return lowest(log_confidence(look.probabilities, look.sets), look.luck, count)


def log_confidence(probabilities: "NDArray[np.float64]", sets: bool) -> "NDArray[np.float64]":
    """(R,) natural logarithm of the likeliest answer's probability, from (R, L)."""
    import numpy as np

    if not sets:
        return np.log(probabilities.max(-1))
    return np.log(np.maximum(probabilities, 1 - probabilities)).sum(-1)
