# Every target sets up what it needs: a virtual environment with the pinned packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check format bench coverage mutants sweep corpus clean

demo: $(READY)
	$(BIN)/python examples/quickstart.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_tree.py
	$(BIN)/python tools/blocks.py --check
	$(BIN)/python tools/laws.py --check
	$(BIN)/python -m pytest -q src README.md docs --doctest-modules --doctest-glob='*.md'

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/features.py --all
	$(BIN)/python benchmarks/align_speed.py
	$(BIN)/python benchmarks/align_files.py

coverage: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term

mutants: $(READY)
	$(BIN)/python tools/mutate.py

sweep: $(READY)
	$(BIN)/python benchmarks/pyramids.py
	$(BIN)/python benchmarks/alignment.py
	$(BIN)/python benchmarks/stored.py --out docs/saving.md
	$(BIN)/python benchmarks/checkpoints.py --out docs/checkpoints.md
	$(BIN)/python benchmarks/sweep.py --out docs/sweep.md

# Goes on where it stopped; the rows lie in benchmarks/results.
corpus: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r benchmarks/requirements-corpus.txt
	$(BIN)/python -W ignore benchmarks/corpus --jobs 2
	$(BIN)/python -W ignore benchmarks/corpus --meta --jobs 2

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)
