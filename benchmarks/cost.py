"""What the teacher costs a request, what distilling cost once, and when that is earned back. Asks nobody for prices."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(frozen=True)
class Cost:
    """US dollars, None where unknown, never 0 for unknown.

    `distillation_usd` is what the teacher's answers cost when they were made, whoever paid, those on dev and test rows
    included; work, electricity and the device are not priced. `break_even_requests` is the number of requests whose
    price at the teacher's API is as much. `price_usd_per_mtok` is the price that both were counted with, as the recipe
    states it.
    """

    teacher_usd_per_1000_requests: float | None
    distillation_usd: float | None
    break_even_requests: int | None
    price_usd_per_mtok: dict[str, str] | None


def cost_of(teacher: Mapping[str, Any]) -> Cost:
    """From what a bundle says of its teacher."""
    price = teacher.get("price_usd_per_mtok")
    each, once = _number(teacher.get("usd_per_1000_requests")), _number(teacher.get("recorded_usd"))
    known = {key: str(value) for key, value in (price or {}).items() if str(value) != "None"}
    return Cost(
        teacher_usd_per_1000_requests=each,
        distillation_usd=once,
        break_even_requests=ceil(1000 * once / each) if each and once is not None else None,
        price_usd_per_mtok=known or None,
    )


def _number(value: Any) -> float | None:
    return None if value is None or str(value) == "None" else float(value)
