"""The strategies by the name that a recipe gives them."""

from typing import Any

from pydantic import ValidationError

from edgestill.distill.select.everything import Everything
from edgestill.distill.select.selection import Selection

STRATEGIES: dict[str, type[Selection]] = {
    "all": Everything,
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
    if name not in STRATEGIES:
        raise ValueError(f"strategy {name!r} is not known; known: {', '.join(STRATEGIES)}")
    try:
        return STRATEGIES[name].model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place, known = ".".join(map(str, problem["loc"])), ", ".join(STRATEGIES[name].model_fields)
        raise ValueError(f"{place}: {problem['msg']} (strategy {name} has the keys {known})") from None
