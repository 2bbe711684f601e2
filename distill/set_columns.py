"""Which columns of a data file hold sets of labels: lists of them, or text with bars. Guesses for `propose`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from edgestill.runtime import label_sets

SET_NAMES = ("labels", "tags", "categories", "classes", "topics", "intents", "emotions", "genres")


def set_columns(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Counter[str]]]:
    """(column, how often each label occurs) for columns whose values are sets of labels, where they are not missing.

    Text counts only where its parts are fewer than its values: else the bars are as well part of the labels' names.
    """
    for column in dict.fromkeys(key for record in records for key in record):
        values = [record[column] for record in records if record.get(column) is not None]
        if values and all(isinstance(value, list) for value in values):
            sets = [tuple(value) for value in values]
        elif all(isinstance(value, str) for value in values) and any(label_sets.BAR in value for value in values):
            sets = [label_sets.split(value) for value in values]
            if len({name for names in sets for name in names}) >= len(set(values)):
                continue
        else:
            continue
        if all(_is_label(name) for names in sets for name in names):
            yield column, Counter(name for names in sets for name in dict.fromkeys(names))


def _is_label(name: object) -> bool:
    """Whether a recipe of kind multilabel can hold it: one line without blanks around it, no bar, no half character."""
    if not isinstance(name, str) or label_sets.BAR in name or name == label_sets.EMPTY:
        return False
    return name.encode(errors="ignore").decode().strip().splitlines() == [name]
