"""Rows in: read, give each an id, drop duplicates, split by hash, keep the test rows' likes out of training.

Does not ask a teacher and does not know the student.
"""

import csv
import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgestill.distill.chance import chance
from edgestill.distill.recipe import Recipe, resolve
from edgestill.distill.task_section import TaskSection
from edgestill.runtime.choices import choices_of, with_choices
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import fill_template, redacted

# Cosine of binary character 4-gram vectors above which two texts count as near duplicates.
NEAR_DUPLICATE_COSINE = 0.9
COMPARED_AT_ONCE = 2_000


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One text. `id` is a hash of the text, so it is the same in every run; `split` is train, dev or test."""

    id: str
    text: str
    gold: str | None
    split: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """All rows that were read: those to learn from or to measure on, and those taken out, with the reason.

    Reasons: duplicate (the same text earlier in the pool), in_test and near_test (the same or nearly the same text
    among the test rows), near_dev (a training row nearly equal to a development row). `redacted` counts the places
    that `teacher.redact` hid.
    """

    rows: tuple[Row, ...]
    removed: tuple[tuple[Row, str], ...] = ()
    redacted: int = 0

    def split(self, name: str) -> list[Row]:
        """Rows of train, dev or test, in reading order."""
        return [row for row in self.rows if row.split == name]

    @property
    def removed_by_reason(self) -> dict[str, int]:
        """How many rows each reason took out."""
        return dict(Counter(reason for _, reason in self.removed))


def load_dataset(recipe: Recipe, recipe_path: Path) -> Dataset:
    """Read the recipe's pool and test rows and split them.

    Raises:
        EdgestillError: a file that is missing, unreadable or empty, a missing field, or a gold label that the recipe
            does not know. The message names file and row.
    """
    data, places = recipe.data, [0]
    pool = list(read_rows(resolve(recipe_path, data.pool), recipe, "train", data.test is None, places))
    pool, removed = _without_duplicates(pool)
    if data.test is not None:
        test = list(read_rows(resolve(recipe_path, data.test), recipe, "test", True, places))
    else:
        test = [row for row in pool if chance(row.id, data.seed, "test") < data.test_fraction]
        pool = [row for row in pool if chance(row.id, data.seed, "test") >= data.test_fraction]
    test_ids = {row.id for row in test}
    pool = [dataclasses.replace(row, gold=None) for row in pool]
    removed += [(dataclasses.replace(r, id=f"{r.id}-pool"), "in_test") for r in pool if r.id in test_ids]
    pool = [row for row in pool if row.id not in test_ids]
    pool = _without_likes(pool, test, "near_test", removed)
    dev = [dataclasses.replace(r, split="dev") for r in pool if chance(r.id, data.seed, "dev") < data.dev_fraction]
    dev_ids = {row.id for row in dev}
    train = _without_likes([row for row in pool if row.id not in dev_ids], dev, "near_dev", removed)
    for name, rows in (("train", train), ("dev", dev), ("test", test)):
        if not rows:
            counts = dict(Counter(reason for _, reason in removed))
            raise EdgestillError(
                f"no rows are left for {name}: {len(train)} train, {len(dev)} dev, {len(test)} test, removed {counts}",
                "give more rows, or change data.dev_fraction or data.test_fraction",
            )
    return Dataset((*train, *dev, *_distinct_ids(test)), tuple(removed), places[0])


def _without_duplicates(pool: list[Row]) -> tuple[list[Row], list[tuple[Row, str]]]:
    """The first row of each id, in reading order, and the others, each under an id of its own."""
    kept: dict[str, Row] = {}
    again: Counter[str] = Counter()
    removed: list[tuple[Row, str]] = []
    for row in pool:
        if kept.setdefault(row.id, row) is not row:
            again[row.id] += 1
            removed.append((dataclasses.replace(row, id=f"{row.id}-again{again[row.id]}", gold=None), "duplicate"))
    return list(kept.values()), removed


def _without_likes(rows: list[Row], others: list[Row], reason: str, removed: list[tuple[Row, str]]) -> list[Row]:
    """`rows` without near duplicates of `others`; these go to `removed`."""
    near = near_duplicates([row.text for row in rows], [row.text for row in others])
    removed += [(rows[i], reason) for i in sorted(near)]
    return [row for i, row in enumerate(rows) if i not in near]


def row_id(text: str) -> str:
    """16 hex digits of SHA-256 over the text, lower-cased and with runs of white space as one blank."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:16]


def near_duplicates(texts: Sequence[str], others: Sequence[str]) -> set[int]:
    """Indices of `texts` that are nearly equal to one of `others`: cosine of character 4-grams >= 0.9.

    Memory is bounded: `COMPARED_AT_ONCE` texts are compared with all others at a time.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    if not texts or not others:
        return set()
    grams = HashingVectorizer(analyzer="char_wb", ngram_range=(4, 4), binary=True, norm="l2", alternate_sign=False)
    wanted = grams.transform(others).T.tocsc()
    found: set[int] = set()
    for start in range(0, len(texts), COMPARED_AT_ONCE):
        likeness = grams.transform(texts[start : start + COMPARED_AT_ONCE]) @ wanted
        best = likeness.max(axis=1).toarray().ravel()
        found |= {start + int(i) for i in (best >= NEAR_DUPLICATE_COSINE).nonzero()[0]}
    return found


def read_rows(source: str, recipe: Recipe, split: str, read_gold: bool, places: list[int]) -> Iterator[Row]:
    """Rows of a source, redacted before anything else sees them; `places[0]` counts what was hidden."""
    for where, record in read_records(source, split):
        try:
            text = with_own_choices(fill_template(recipe.data.text, record), record, recipe.task)
        except EdgestillError as error:
            raise EdgestillError(f"{where}: {error.message}", "mend the row or data.text in the recipe") from None
        text, hidden = redacted(text, recipe.teacher.redact)
        places[0] += hidden
        yield Row(row_id(text), text, _gold(record, recipe, where, text) if read_gold else None, split)


def with_own_choices(text: str, record: Mapping[str, Any], task: TaskSection) -> str:
    """A row's text with the choices of its record below it, where the task has any.

    Raises:
        EdgestillError: no such field, or not 2 to `most_choices` texts in it.
    """
    if task.choices is None:
        return text
    found = record.get(task.choices)
    if found is None:
        raise EdgestillError(f"no column {task.choices!r} of choices, found {sorted(record)}")
    whole = with_choices(text, found)
    if (count := len(choices_of(whole))) > task.most_choices:
        raise EdgestillError(f"{count} choices in {task.choices!r}, but task.most_choices is {task.most_choices}")
    return whole


def _gold(record: dict[str, Any], recipe: Recipe, where: str, text: str) -> str | None:
    if recipe.data.gold is None:
        return None
    value = record.get(recipe.data.gold)
    if value is None:
        raise EdgestillError(f"{where}: no gold column {recipe.data.gold!r}, found {sorted(record)}", "mend data.gold")
    task = recipe.task
    named = not (task.is_written or task.choices or isinstance(value, list))  # a label may be a number in the data
    try:
        return task.read(str(value) if named else value, text)
    except EdgestillError as error:
        hint = "mend the row" if task.is_written or task.choices else "add it to task.labels or mend the row"
        raise EdgestillError(f"{where}: gold {error.message}", hint) from None


def _distinct_ids(test: Sequence[Row]) -> Iterator[Row]:
    """Test rows are never dropped: a repeated text stays, under an id of its own."""
    seen: dict[str, int] = {}
    for row in test:
        seen[row.id] = seen.get(row.id, 0) + 1
        suffix = f"-{seen[row.id]}" if seen[row.id] > 1 else ""
        yield dataclasses.replace(row, id=row.id + suffix, split="test")


def read_records(source: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) for every record of a .jsonl, .csv or .parquet file or a `datasets` id.

    Args:
        source: a path with one of those suffixes, or an id, or `id:split`.
        split: the split taken of an id that names none.
    """
    path = Path(source)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix in readers:
        if not path.is_file():
            raise EdgestillError(f"no file {path}", "mend data.pool or data.test; paths are relative to the recipe")
        records = readers[path.suffix](path)
    elif path.is_file():
        raise UsageError(f"{path} ends in {path.suffix!r}, wanted .jsonl, .csv or .parquet", "convert it first")
    else:
        records = _read_hub(source, split)
    empty = True
    for item in records:
        empty = False
        yield item
    if empty:
        raise EdgestillError(f"{source} is empty", "wanted at least one row")


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise EdgestillError(f"{where} is not JSON: {error}", "one JSON object a line, UTF-8") from None
            if not isinstance(record, dict):
                raise EdgestillError(f"{where} holds {type(record).__name__}, wanted a JSON object")
            yield where, record


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for record in reader:
                yield f"{path}:{reader.line_num}", {k: v for k, v in record.items() if k is not None}
    except (UnicodeDecodeError, csv.Error) as error:
        raise EdgestillError(f"{path} is not CSV in UTF-8: {error}", "save it again with a header row") from None


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        number = 0
        for batch in batches:
            for record in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise EdgestillError(f"{path} is not a Parquet file that can be read: {error}") from None


def _read_hub(source: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells every retry
    name, _, named_split = source.partition(":")
    try:
        rows = datasets.load_dataset(name, split=named_split or split)
    except Exception as error:  # datasets raises a dozen unrelated classes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EdgestillError(
            f"{source!r} is no file here and datasets.load_dataset cannot read it: {reason}",
            "name a .jsonl, .csv or .parquet file or a data set id",
        ) from None
    for number, record in enumerate(rows):
        yield f"{source} row {number}", dict(record)
