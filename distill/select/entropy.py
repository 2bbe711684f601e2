"""Rows whose answers have the highest entropy (Shannon 1948; Settles 2009, section 3.1)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from edgestill.distill.select.rounds import Look, Need, Rounds, lowest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Entropy(Rounds):
    """Asks where -sum p log p is highest; of sets (our reading) with labels independent: the sum of theirs."""

    needs: ClassVar[frozenset[Need]] = frozenset({"probabilities"})
    strategy: Literal["entropy"] = "entropy"

    def rank(self, look: Look, count: int) -> "NDArray[np.intp]":
        """See `Rounds`."""
        return lowest(-entropies_nats(look.probabilities, look.sets), look.luck, count)


def entropies_nats(probabilities: "NDArray[np.float64]", sets: bool) -> "NDArray[np.float64]":
    """(R,) from (R, L); a probability of 0 adds nothing."""
    import numpy as np

    shares = np.stack([probabilities, 1 - probabilities]) if sets else probabilities[None]
    logs = np.log(np.where(shares > 0, shares, 1))
    return -(shares * logs).sum((0, -1))
