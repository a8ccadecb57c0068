# `make demo` and `make test` are the only set-up there is: both make .venv from the package index and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "cbir_faiss needs Python 3.10 or newer: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet uv

# Each stamp is one set of extras, renewed when pyproject.toml changes (a new entry point needs a new install).
$(VENV)/.demo: $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[cpu,sklearn]'
	@touch $@

# Compiled now, or every command would do it again wherever PYTHONDONTWRITEBYTECODE is set.
$(VENV)/.dev: $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[all,dev]'
	@$(BIN)/python -m compileall -q cbir_faiss connectors
	@touch $@

demo: $(VENV)/.demo  ## set up, compare raw and binary indexing on built-in data -> runs/demo/report.html
	$(BIN)/cbir compare configs/demo.yaml --out runs/demo

# A process for each core, at most four: each may load torch.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.dev  ## set up and run the whole test suite
	$(PYTEST)

servers: $(VENV)/.dev  ## the contract kit against Qdrant and PostgreSQL in Docker
	connectors/test-servers.sh

lint: $(VENV)/.dev  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## what must be green before a commit: lint and the fast tests
	$(PYTEST) -m 'not slow'

format: $(VENV)/.dev  ## format and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: help demo test servers lint check format
