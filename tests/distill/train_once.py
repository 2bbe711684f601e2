"""Train one student on rows made here; a program of its own, to be killed and to be launched in pairs.

Usage: train_once.py RECIPE OUT CHECKPOINT_S PASS_ROWS (0: the recipe's)
Where OUT holds a student that is trained, it is put on the grid, in OUT/grid.
"""

import sys
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row, row_id
from edgestill.distill.plan import make_plan
from edgestill.distill.student.onto_grid import put_on_grid
from edgestill.distill.student.train import FACTS_NAME, train_student
from edgestill.distill.teacher.protocol import Annotation


def main(recipe: Path, out: Path, checkpoint_s: float, pass_rows: int) -> None:
    plan = make_plan(recipe).students[0]
    settings = plan.recipe.train.model_copy(update={"pass_rows": pass_rows or None})
    alone = plan.recipe.model_copy(update={"train": settings})
    texts = [f"the {word} number {i}" for i, word in enumerate(["tomato", "grass", "frog", "cherry"] * 10)]
    answers = ["red", "green", "green", "red"] * 10
    pairs: list[Any] = [
        (Row(row_id(t), t, None, "train"), Annotation(row_id(t), a, None, f"{a} it is", 1, 1, None, ""))
        for t, a in zip(texts, answers, strict=True)
    ]
    if (out / FACTS_NAME).exists():
        put_on_grid(plan, pairs, [row for row, _ in pairs[:4]], out, out / "grid", "0f")
        return
    train_student(alone, plan.base, plan.task, plan.tokenizer, pairs, pairs[:4], out, "0f", checkpoint_s=checkpoint_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
