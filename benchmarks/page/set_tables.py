"""What a report says of sets of labels, as text: the table by label, and what the figures count. Computes nothing."""

from collections import defaultdict
from collections.abc import Iterator

from edgestill.benchmarks.page.tables import UNKNOWN, Table, listed
from edgestill.benchmarks.sets import SetScores
from edgestill.runtime.set_metrics import LabelScore


def sets_table(sets: SetScores) -> Table:
    """One row a label: n rows that hold it, and the precision, recall and F1 of each system in percent."""
    names = list(sets.labels[0].scores)
    rows = [(line.label, str(line.n), *(_cell(line.scores[name]) for name in names)) for line in sets.labels]
    return Table(("label", "n", *(f"{name}: precision, recall, F1 %" for name in names)), tuple(rows))


def _cell(score: LabelScore) -> str:
    shares = (score.precision, score.recall, score.f1)
    return ", ".join(UNKNOWN if share is None else f"{100 * share:.1f}" for share in shares)


def set_notes(sets: SetScores) -> Iterator[str]:
    """What is counted as right, and which labels macro-F1 leaves out."""
    yield (
        "A row counts as right when its whole set of labels is right; comparisons and choice are of such rows. "
        "micro-F1 is over all labels of all rows at once, macro-F1 the mean of the labels' F1."
    )
    by_count = defaultdict[int, list[str]](list)
    for name, count in sets.left_out.items():
        by_count[count].append(name)
    said = [f"{n} of {len(sets.labels)} for {listed(names)}" for n, names in sorted(by_count.items()) if n]
    if said:
        why = "macro-F1 leaves out the labels that no right set holds and the system never gave"
        yield f"{why}: {'; '.join(said)}."
