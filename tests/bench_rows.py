"""Rows for `bench_train.py`: the bundled example's, and SVAMP's or made-up ones of its lengths. Trains nothing."""

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

from edgestill.distill.dataset import Row, load_dataset, row_id
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.open import open_teacher
from edgestill.distill.teacher.protocol import Annotation

EXAMPLE = Path(__file__).parent.parent / "distill" / "example" / "recipe.yaml"
SEED = 7
OPERATIONS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
Pair = tuple[Row, Annotation]


def example_pairs(recipe: Recipe) -> tuple[list[Pair], str]:
    data = load_dataset(recipe, EXAMPLE)
    teacher = open_teacher(recipe, EXAMPLE, EXAMPLE.parent, data.rows)
    told = [(row, teacher.answer(row)) for row in data.rows]
    return [(r, a) for r, a in told if isinstance(a, Annotation) and a.rationale], "the bundled example"


def svamp_pairs(train: int, dev: int) -> tuple[list[Pair], str]:
    """Question; operation (mixed where the recorded answer has several or none); the recorded chain of thought."""
    folder, records = os.environ.get("EDGESTILL_DATA"), synthetic(train + dev)
    pairs: list[Pair] = []
    if folder:
        lines = (Path(folder) / "svamp" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        records = ((r["question"], r["teacher"]["completion"]) for r in map(json.loads, lines))
    for text, completion in records:
        reason, _, formula = completion.partition(" The answer is ")
        signs = re.findall(r" ([-+*/]) ", formula)
        label = OPERATIONS[signs[0]] if len(set(signs)) == 1 else "mixed"
        answer = Annotation(row_id(text), label, None, reason, None, None, None, "")
        pairs.append((Row(row_id(text), text, None, "train" if len(pairs) < train else "dev"), answer))
    return pairs, "SVAMP with its recorded teacher" if folder else "made-up rows with SVAMP's lengths"


def synthetic(count: int) -> Iterator[tuple[str, str]]:
    """Word problems and answers, padded with asides to SVAMP's lengths: 32 and 29 words in the mean."""
    rng = random.Random(SEED)
    for _ in range(count):
        name, thing, place = (rng.choice(words.split()) for words in (
            "Luke Faye Julia Omar Wei Ana Tom Ruth", "points pencils crayons books apples cards coins shells",
            "school home market park kitchen library garden station"))  # fmt: skip
        a, b, sign = rng.randint(3, 99), rng.randint(2, 30), rng.choice("+---*/")
        asides = [f"{name} went to the {place} with {rng.randint(2, 90)} {thing}." for _ in range(9)]
        before, within = (max(0, round(rng.gauss(*words) / 8)) for words in ((15, 8), (13, 12)))
        done = {"+": "found", "-": "lost", "*": "got times", "/": "shared among"}[sign]
        asked = f"{name} had {a} {thing} and then {done} {b} more friends. How many {thing} are there now?"
        told = f"{name} had {a} {thing} and {done} {b}. So there are {a} {sign} {b} now."
        answer = [*asides[:within], told, f"The answer is ({a} {sign} {b})."]
        yield " ".join([*asides[:before], asked]), " ".join(answer)
