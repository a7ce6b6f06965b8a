# `make full` and `make test` need only python 3.11+, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: full quick test test-slow perf check regression clean

full: $(STAMP)
	$(BIN)/python -m bench run --matrix full $(ARGS)

quick: $(STAMP)
	$(BIN)/python -m bench run --matrix quick $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow $(ARGS)

perf: $(STAMP)
	$(BIN)/python -m pytest tests/perf --benchmark-enable --benchmark-only $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

regression: $(STAMP)
	$(BIN)/python -m bench check --baseline results/baselines/ci.parquet $(ARGS)

# pip prefers a CPU wheel of the pinned torch where one is on hand (--find-links or an extra
# index in pip's own configuration) and takes the ordinary one elsewhere.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) *.egg-info build
