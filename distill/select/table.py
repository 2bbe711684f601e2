"""The strategies by the name that a recipe gives them."""

from typing import Any

from pydantic import ValidationError

from edgestill.distill.select.elad import Elad
from edgestill.distill.select.entropy import Entropy
from edgestill.distill.select.everything import Everything
from edgestill.distill.select.k_centre import KCentre
from edgestill.distill.select.least_confidence import LeastConfidence
from edgestill.distill.select.llkd import LLKD
from edgestill.distill.select.margin import Margin
from edgestill.distill.select.random import Random
from edgestill.distill.select.selection import Selection
from edgestill.distill.select.student_uncertainty import ByStudentUncertainty
from edgestill.distill.select.teacher_confidence import ByTeacherConfidence

STRATEGIES: dict[str, type[Selection]] = {
    "all": Everything,
    "random": Random,
    "least_confidence": LeastConfidence,
    "margin": Margin,
    "entropy": Entropy,
    "k_centre": KCentre,
    "llkd": LLKD,
    "teacher_confidence": ByTeacherConfidence,
    "student_uncertainty": ByStudentUncertainty,
    "elad": Elad,
}


def read_selection(value: Any) -> Selection:
    """The recipe's section `select`.

    Raises:
        ValueError: an unknown strategy or key, or a bad value; one line.
    """
    if isinstance(value, Selection):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"wanted a section such as {{strategy: random, rows: 300}}, found {value!r:.80}")
    name = value.get("strategy", "all")
    if not isinstance(name, str) or name not in STRATEGIES:
        raise ValueError(f"strategy {name!r} is not known; known: {', '.join(STRATEGIES)}")
    try:
        return STRATEGIES[name].model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        plain = {"missing": "is missing", "extra_forbidden": "is unknown"}
        said = plain.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        place = ".".join(map(str, problem["loc"]))
        keys = ", ".join(key for key in STRATEGIES[name].model_fields if key != "strategy")
        raise ValueError(f"{place} {said}".strip() + f" (keys of strategy {name}: {keys or 'none'})") from None
