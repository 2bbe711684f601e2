"""A device's own check: the bundle's golden rows answered here, beside the answers of the trained weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgestill.runtime import manifest
from edgestill.runtime.prediction import Prediction


@dataclass(frozen=True)
class SelfCheck:
    """How this device's answers differ from those of the trained weights, over the bundle's golden rows.

    `max_probability_difference` is over the labels' probabilities; of written answers, which have none, over the
    probability of the answer where both wrote the same.
    """

    rows: int
    labels_changed: int
    max_probability_difference: float


def selfcheck(predict_text: Callable[[str], Prediction], golden: Path) -> SelfCheck:
    """Answer the rows of golden.jsonl: text, label and probabilities, of written answers `written` and confidence."""
    changed, worst, rows = 0, 0.0, 0
    for row in manifest.read_jsonl(golden):
        found = predict_text(row["text"])
        rows += 1
        changed += found.label != row["label"]
        pairs = [(found.probabilities[name], p) for name, p in row["probabilities"].items()]
        if found.text is not None and found.text == row["written"]:
            pairs.append((found.confidence, row["confidence"]))
        worst = max([worst, *(abs(here - there) for here, there in pairs)])
    return SelfCheck(rows, changed, worst)
