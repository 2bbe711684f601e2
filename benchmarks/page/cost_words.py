"""What a report says of money, in sentences. Computes nothing and asks nobody for prices."""

from collections.abc import Iterator

from edgestill.benchmarks.page.tables import usd
from edgestill.benchmarks.report import Report


def cost_sentences(report: Report) -> list[str]:
    """The teacher's price, what distilling cost, and when that is earned back, or why that cannot be said."""
    return list(_sentences(report))


def _sentences(report: Report) -> Iterator[str]:
    cost = report.cost
    each, once = cost.teacher_usd_per_1000_requests, cost.distillation_usd
    if each is None:
        yield "The teacher's price is not known: no break-even is stated. Prices go in the recipe."
        return
    yield f"The teacher's API asks {usd(each)} USD for 1,000 such requests{_basis(cost.price_usd_per_mtok)}."
    if once is None:
        yield "What the teacher's answers cost that the student learned from is not known: no break-even is stated."
        return
    yield (
        f"The teacher's answers that the student learned from cost {usd(once)} USD when they were made, those on dev "
        "and test rows included."
    )
    if cost.break_even_requests is None:
        yield "The teacher asks nothing a request, so that nothing is earned back."
    else:
        even = f"{cost.break_even_requests:,}"
        yield f"That is the teacher's price of {even} requests: from there on the student is cheaper."
    yield "Work, electricity and the device are not priced."


def _basis(prices: dict[str, str] | None) -> str:
    if not prices:
        return ""
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in prices.items())
    return f", by the recipe's prices in USD per million tokens ({told})"
