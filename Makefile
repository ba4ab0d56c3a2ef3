# Everything sets itself up on a fresh machine with Python 3.11 or later and pip.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help install test lint demo benchmarks docs clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(READY)  ## virtual environment with tested versions

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(READY)  ## the whole story on simulated jets, in minutes: results in demo/
	$(BIN)/jetrep demo

benchmarks: $(READY)  ## speed beside the peers, one JSON object each
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file --json || exit 1; done

docs: $(READY)  ## the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean:  ## remove the environment and caches, keep stores and runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis site
