"""How sure an answer is: probabilities scaled by the temperature that the bundle ships. Fits nothing.

Temperature scaling divides log-odds by one number, so that no answer changes and only how sure it is (Guo et al. 2017,
arXiv 1706.04599).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgestill.runtime import manifest
from edgestill.runtime.decode import Probabilities, log_softmax

CALIBRATION_NAME = "calibration.json"
_SMALLEST = 1e-300  # log 0 is no number
_LAST_BIT = 2.0**-53  # a sigmoid that says 0 or 1 is somewhere below this or above one less: no further than 37 nats


@dataclass(frozen=True)
class Temperature:
    """What one engine's log-odds are divided by, and how that was found.

    `rows` development rows that training did not see, judged by the teacher. `ece_before` and `ece_after` are
    `metrics.expected_calibration_error` of the probability and of the confidence, the second with temperatures that
    were fitted without the row; of a task with sets of labels, over each label's own yes or no.
    """

    engine: str
    temperature: float
    rows: int
    judged_by: str
    ece_before: float
    ece_after: float


@dataclass(frozen=True)
class Calibration:
    """The file `calibration.json` of a bundle: one temperature for each engine."""

    temperatures: tuple[Temperature, ...]
    schema: str = "edgestill-calibration/1"


def load_temperature(folder: Path, engine: str) -> Temperature | None:
    """An engine's temperature; None where the bundle ships none, which had too few judged rows or is an older one.

    Raises:
        EdgestillError: the file is not what export wrote.
    """
    path = folder / CALIBRATION_NAME
    if not path.exists():
        return None
    found = manifest.load(Calibration, path).temperatures
    return next((each for each in found if each.engine == engine), None)


def log_odds(probabilities: Probabilities, each_its_own: bool) -> Probabilities:
    """What a temperature divides: (N, L) log-probabilities, or with `each_its_own` (N * L, 2) pairs of no and yes."""
    if not each_its_own:
        return np.asarray(np.log(np.maximum(probabilities, _SMALLEST)))
    p = np.clip(probabilities, _LAST_BIT, 1 - _LAST_BIT).ravel()
    return np.log(np.stack([1 - p, p], axis=1))


def confidence(probabilities: Probabilities, chosen: Sequence[int], each_its_own: bool, temperature: float) -> float:
    """Calibrated probability that an answer is the teacher's, 0 to 1.

    Args:
        probabilities: of the labels, (L,), as the engine gives them.
        chosen: places of the labels that answer: one, or a set's.
        each_its_own: the answer is a set. Its confidence is that of its least certain label, held or not: the chance
            that the whole set is the teacher's is not above it.
        temperature: 1 leaves the probabilities as they are.
    """
    scaled = np.exp(log_softmax(log_odds(probabilities, each_its_own) / temperature))
    if not each_its_own:
        return float(scaled[chosen[0]])
    held = np.isin(np.arange(len(probabilities)), chosen).astype(int)
    return float(scaled[np.arange(len(held)), held].min())
