"""Response priming: words put to the teacher's question so that its answer suits a small student (arXiv 2412.17846).

The prompts are the published ones, word for word; "ground truth" shows no gold answer, it names the teacher the source
for smaller models. The student never sees them.
"""

from typing import Literal

Priming = Literal["none", "teacher", "ground_truth", "confidence"]
BEFORE: dict[str, str] = {
    "teacher": (
        "As a teacher, guide your student through solving the question below. Provide a clear, simple explanation for "
        "someone unfamiliar with the problem. "
    ),
    "ground_truth": (
        "As a smart language model, provide a detailed answer that is clear and feasible for smaller models to "
        "understand and learn from without losing too much detail. "
    ),
}
AFTER: dict[str, str] = {"confidence": " Briefly double-check that your answer is correct once done."}


def primed(text: str, priming: str) -> str:
    """The question as the teacher gets it."""
    return BEFORE.get(priming, "") + text + AFTER.get(priming, "")


def unprimed(asked: str, priming: str) -> str:
    """The question in what the teacher got."""
    return asked.removeprefix(BEFORE.get(priming, "")).removesuffix(AFTER.get(priming, ""))
