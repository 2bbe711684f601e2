"""The rows that instructions are measured on: with gold, none of them a test row, in two halves. Asks nobody."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgestill.distill.dataset import Dataset, Row, near_duplicates, read_records, read_rows
from edgestill.distill.recipe import Recipe
from edgestill.runtime.errors import UsageError
from edgestill.runtime.task import redacted

FEWEST_ROWS = 8
WORKED = 3  # problems with their answer that every round shows, as in arXiv 2403.15886


@dataclass(frozen=True)
class GoldRow:
    """A row whose right answer is known, and a reason for it if the file has one."""

    row: Row
    rationale: str | None

    @property
    def gold(self) -> str:
        """The right answer."""
        return str(self.row.gold)


@dataclass(frozen=True)
class GoldRows:
    """Two halves by hash: `search` is what candidates are scored on, `held_out` what the winner is scored on again.

    `dropped` counts rows that were left out: in_test and near_test (the same or nearly the same text among the
    recipe's test rows), duplicate, near_scored (a held-out row nearly equal to one of the search half).
    """

    search: tuple[GoldRow, ...]
    held_out: tuple[GoldRow, ...]
    dropped: dict[str, int]

    def worked(self, seed: int, number: int) -> list[GoldRow]:
        """A few rows of the search half for one round."""
        return random.Random(f"{seed}:{number}").sample(self.search, min(WORKED, len(self.search)))

    def examples(self, count: int) -> list[GoldRow]:
        """`count` rows of the search half for a few-shot prompt, every label once before one stands there twice."""
        seen, turns = Counter[str](), list[int]()
        for each in self.search:
            seen[each.gold] += 1
            turns.append(seen[each.gold])
        return [self.search[i] for i in sorted(range(len(turns)), key=lambda i: (turns[i], i))[:count]]


def read_gold(recipe: Recipe, path: Path, data: Dataset) -> GoldRows:
    """The rows of a file with the recipe's text fields, its gold column and, where there is one, a `rationale`.

    Args:
        recipe: `data.text` makes the text, `data.gold` names the column, `teacher.redact` hides.
        path: a .jsonl, .csv or .parquet file.
        data: the recipe's rows; its test rows are left out.

    Raises:
        EdgestillError: a file or row that cannot be read, no gold column in the recipe, or too few rows left.
    """
    if recipe.data.gold is None:
        raise UsageError(
            "data.gold is not set, so no answer can be scored", "name the gold column of FILE in data.gold"
        )
    if not path.is_file():
        raise UsageError(
            f"no file {path}", "name a .jsonl, .csv or .parquet file with rows and their gold: --gold FILE"
        )
    rows = read_rows(str(path), recipe, "search", True, [0])
    records = (record for _, record in read_records(str(path), "train"))
    kept, dropped = dict[str, GoldRow](), Counter[str]()
    tests = data.split("test")
    ids = {row.id.partition("-")[0] for row in tests}  # a repeated test row has its number behind the id
    for row, record in zip(rows, records, strict=True):
        reason = "in_test" if row.id in ids else "duplicate" if row.id in kept else None
        if reason is not None:
            dropped[reason] += 1
            continue
        why = redacted(str(record.get("rationale") or "").strip(), recipe.teacher.redact)[0]
        kept[row.id] = GoldRow(row, why or None)
    found = list(kept.values())
    near = near_duplicates([each.row.text for each in found], [row.text for row in tests])
    dropped["near_test"] += len(near)
    left = [each for i, each in enumerate(found) if i not in near]
    if len(left) < FEWEST_ROWS:
        raise UsageError(
            f"{path} has {len(left)} rows that are no test rows, wanted at least {FEWEST_ROWS}",
            "give rows with gold from elsewhere: what is chosen by test rows cannot be measured on them",
        )
    return _halves(left, recipe.prompt_search.seed, dropped)


def _halves(rows: Sequence[GoldRow], seed: int, dropped: Counter[str]) -> GoldRows:
    rank = lambda each: hashlib.sha256(f"prompt-search:{seed}:{each.row.id}".encode()).digest()  # noqa: E731
    ordered = sorted(rows, key=rank)
    middle = len(ordered) // 2
    search, rest = ordered[:middle], ordered[middle:]
    near = near_duplicates([each.row.text for each in rest], [each.row.text for each in search])
    dropped["near_scored"] += len(near)
    held_out = [replace(e, row=replace(e.row, split="held_out")) for i, e in enumerate(rest) if i not in near]
    if not held_out:
        raise UsageError(f"all {len(rest)} held-out rows nearly equal scored ones", "give rows that differ more")
    return GoldRows(tuple(search), tuple(held_out), {name: count for name, count in dropped.items() if count})
