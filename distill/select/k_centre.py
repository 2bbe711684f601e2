"""Rows that cover the pool: k-centre greedy on embeddings (Sener and Savarese, arXiv 1708.00489, algorithm 1)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from edgestill.distill.select.rounds import Look, Need, Rounds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class KCentre(Rounds):
    """Takes again and again the row that is farthest from all that are learnt from or taken.

    Distances are Euclidean. With the centres given, the greatest distance of a row to its nearest centre is at most
    twice the best possible (Gonzalez 1985). The paper's second step, a mixed-integer programme that shortens it with
    some outliers left out, is not built.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    strategy: Literal["k_centre"] = "k_centre"

    def rank(self, look: Look, count: int) -> "NDArray[np.intp]":
        """See `Rounds`."""
        return farthest_first(look.embeddings, look.learnt, look.luck, count)


def farthest_first(
    embeddings: "NDArray[np.float64]", centres: "NDArray[np.float64]", luck: "NDArray[np.float64]", count: int
) -> "NDArray[np.intp]":
    """Indices of `count` of R embeddings (R, H), each the farthest from `centres` (N, H) and those before it.

    Between equally far ones, and for the first where there are no centres, the luckier is taken. Time grows with
    R * (N + count) * H, memory with R * H.
    """
    import numpy as np

    distances = np.full(len(embeddings), np.inf)
    for centre in centres:
        np.minimum(distances, _distances(embeddings, centre), out=distances)
    taken = list[int]()
    for _ in range(count):
        best = int(np.lexsort((luck, -distances))[0])
        taken.append(best)
        np.minimum(distances, _distances(embeddings, embeddings[best]), out=distances)
        distances[best] = -np.inf  # below a copy of it, which has 0
    return np.array(taken, dtype=np.intp)


def _distances(embeddings: "NDArray[np.float64]", centre: "NDArray[np.float64]") -> "NDArray[np.float64]":
    import numpy as np

    return np.linalg.norm(embeddings - centre, axis=-1)
