"""One annotation run in a process of its own, to be killed: `asker.py CONFIG`, with a JSON object of what to ask.

Prints the ledger as JSON, and exits as the command line does.
"""

import dataclasses
import json
import sys
from pathlib import Path

from edgestill.distill.annotate import annotate
from edgestill.distill.dataset import Dataset, Row, row_id
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.open import open_teacher

config = json.loads(sys.argv[1])
texts = [f"{config['word']} {i}" for i in range(config["rows"])]
data = Dataset(tuple(Row(row_id(text), text, None, ("train", "dev", "test")[i % 3]) for i, text in enumerate(texts)))
recipe, folder = Recipe.model_validate(config["recipe"]), Path(config["folder"])
teacher = open_teacher(recipe, folder / "recipe.yaml", folder, data.rows)
ledger, stopped = annotate(recipe, data, teacher, lambda text: True, folder)
print(json.dumps(dataclasses.asdict(ledger)))
sys.exit(0 if stopped is None else stopped.exit_code)
