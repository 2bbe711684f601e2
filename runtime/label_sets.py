"""Sets of labels as one text: names in the task's order with " | " between them, "(none)" for the empty set.

One spelling of each set, so that sets are compared, counted and written where labels are. Judges no answer.
"""

from collections.abc import Iterable, Sequence

from edgestill.runtime.errors import EdgestillError

BAR = "|"
SEPARATOR = f" {BAR} "
EMPTY = "(none)"


def join(names: Iterable[str], labels: Sequence[str]) -> str:
    """The text of a set: each name once, in the order of `labels`.

    Raises:
        EdgestillError: a name that is not one of `labels`.
    """
    wanted = dict.fromkeys(names)
    unknown = next((name for name in wanted if name not in labels), None)
    if unknown is not None:
        raise EdgestillError(f"label {unknown!r:.80} is not one of {list(labels)}")
    return SEPARATOR.join(label for label in labels if label in wanted) or EMPTY


def split(text: str) -> tuple[str, ...]:
    """The names of a text with bars between them, outer blanks taken off; none of "(none)" and of a blank text."""
    names = tuple(part.strip() for part in text.split(BAR))
    return () if names in ((EMPTY,), ("",)) else names


def read(value: object, labels: Sequence[str]) -> str:
    """The text of the set that a field of a record holds: a list of names, or names with bars between them.

    Raises:
        EdgestillError: neither of both, or a name that is not one of `labels`.
    """
    if isinstance(value, str):
        return join(split(value), labels)
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return join(value, labels)
    raise EdgestillError(f"labels {value!r:.80} are neither a list of names nor text such as 'a{SEPARATOR}b'")
