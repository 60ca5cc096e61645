# `make demo` and `make test` need nothing but Python ≥ 3.11 and make: they make .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo compare benchmarks test test-all lint types check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv and install cubeclf in it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "cubeclf needs Python 3.11 or newer; name one: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(STAMP)

demo: $(STAMP)  ## the whole job on two simulated brains, in a few minutes
	$(BIN)/python examples/demo.py

compare: $(STAMP)  ## networks and simple rules on three simulated brains, label for label
	$(BIN)/python -m benchmarks.comparison small --folder compare --resume

benchmarks: $(STAMP)  ## docs/benchmarks.md from what has been measured
	$(BIN)/python -m benchmarks.page

test: $(STAMP)  ## the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal  # a thread a worker

test-all: $(STAMP)  ## all tests, the slow ones too
	$(BIN)/python -m pytest -m "not gpu"

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

check: test lint types  ## what CI runs

clean:  ## remove the environment and the demo
	rm -rf $(VENV) demo compare
