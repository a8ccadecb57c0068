# `make demo` and `make test` are the only set-up there is: both make .venv from the package index and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

help:  ## show this list (times: two cores, after the set-up, which takes some minutes once)
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

demo: $(VENV)/.demo  ## set up, compare raw and binary indexing on built-in data -> runs/demo/report.html (10 s)
	$(BIN)/cbir compare configs/demo.yaml --out runs/demo

# A process for each core, at most four: each may load torch. Compiled tests are kept, or every process would do it again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# What takes long is known from tests/spent.txt.
test: $(VENV)/.dev  ## set up and run the test suite (6 min; with SLOW=yes, as CI does, its slow tests too, 19 min)
	$(PYTEST) $(if $(SLOW),,-m 'not slow')

test-fast: $(VENV)/.dev  ## the tests that take next to nothing (2 min)
	$(PYTEST) -m 'not slow and not medium'

servers: $(VENV)/.dev  ## the contract kit against Qdrant and PostgreSQL in Docker (2 min)
	connectors/test-servers.sh

lint: $(VENV)/.dev  ## format, lint and types (1 min)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

check: lint test-fast  ## what must be green before a commit: lint and test-fast (3 min)

format: $(VENV)/.dev  ## format and sort imports (1 s)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: $(VENV)/.dev  ## write docs/reference/ again from the code (5 s)
	$(BIN)/python docs/reference.py

docs: $(VENV)/.dev  ## the documents as a site -> site/index.html; warnings are errors (15 s)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . site

release: $(VENV)/.dev  ## build dist/, check what is in it and try the wheel; TAG=yes tags the commit (2 min)
	.ci/release $(TAG)

.PHONY: help demo test test-fast servers lint check format reference docs release
