# Every target does its own set-up: it needs Python 3.11+, make, and a network to the package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
TESTS ?= tests

.PHONY: setup demo test test-portable test-slow test-nightly test-all lint types docs clean help

help:
	@echo "make demo      the glyphs experiment: curate, train, evaluate, one table and the page (in $(DEMO)/)"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  the same, the slow tests and the nightly ones (test-slow, test-nightly)"
	@echo "make test-portable  the fast tests four times, as other processors, thread counts and places run them"
	@echo "make docs      the pages of docs/, in build/docs"
	@echo "make setup     only the virtual environment, in $(VENV)/"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; make PYTHON=python3.12 names another") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/dbp sweep experiment=glyphs paths.store=$(DEMO)/store paths.runs=$(DEMO)/runs
	$(BIN)/dbp report glyphs paths.store=$(DEMO)/store paths.runs=$(DEMO)/runs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder -m 'not slow and not nightly' $(TESTS)

test-portable: setup
	$(BIN)/python tests/portable.py

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m 'slow and not nightly' $(TESTS)

test-nightly: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m nightly $(TESTS)

test-all: test test-slow test-nightly

docs: setup
	$(BIN)/mkdocs build --strict --quiet --site-dir build/docs

clean:
	rm -rf $(VENV) $(DEMO)
