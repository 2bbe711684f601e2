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
AFTER: dict[str, str] = {"confidence": "Briefly double-check that your answer is correct once done."}


def primed(text: str, priming: str, has_choices: bool = False) -> str:
    """The question as the teacher gets it; below choices the words have a line of their own."""
    after = AFTER.get(priming)
    end = "" if after is None else ("\n\n" if has_choices else " ") + after
    return BEFORE.get(priming, "") + text + end


def unprimed(asked: str, priming: str) -> str:
    """The question in what the teacher got."""
    after = AFTER.get(priming)
    if after is not None and asked.endswith(after):
        asked = asked.removesuffix(after)
        asked = asked.removesuffix("\n\n") if asked.endswith("\n\n") else asked.removesuffix(" ")
    return asked.removeprefix(BEFORE.get(priming, ""))
