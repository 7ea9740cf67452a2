# `make demo` and `make test` need nothing but Python >= 3.11: each sets up `.venv` and then runs.
#
#   PYTHON   the interpreter that `.venv` is made from
#   TORCH    what pip installs first; give another build of the same version here, with its pip
#            options, e.g. a CPU-only or another CUDA build (pytorch.org lists them)
#   WORKERS  test processes, or tutorials that run at once; each uses one torch thread

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
ifeq ($(strip $(TORCH)),)
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
endif

export NO_MKDOCS_2_WARNING := 1
export WORKERS

BIN := .venv/bin
DEV := .venv/.installed-dev
DOCS := .venv/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint check docs docs-serve bench toys-grade toys-hrv toys-patching clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "diffusion_lens needs Python >= 3.11; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@

$(DOCS): $(DEV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,docs]"
	@touch $@

setup: $(DEV)  ## make .venv with everything that tests and demo need

demo: $(DEV)  ## generate, measure and intervene on the shipped toy models, on a CPU
	$(BIN)/diffusion-lens demo

test: $(DEV)  ## run the tests but for the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

test-slow: $(DEV)  ## run the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not gpu and not network" $(PYTEST_ARGS)

lint: $(DOCS)  ## ruff format, ruff check, pyright
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(DOCS)  ## run the tutorials, build the documentation into site/
	$(BIN)/mkdocs build --strict

docs-serve: $(DOCS)  ## serve the documentation while writing it
	$(BIN)/mkdocs serve

check: $(DOCS)  ## what CI runs: lint, all tests, documentation
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test
	$(MAKE) --no-print-directory test-slow
	$(MAKE) --no-print-directory docs

bench: $(DEV)  ## measure what hooks cost
	$(BIN)/python benchmarks/overhead.py

toys-grade: $(DEV)  ## grade the shipped toy models against their known answers
	$(BIN)/python -m diffusion_lens.toys.grade

toys-hrv: $(DEV)  ## head relevance on the toy UNet: vectors, weakening curves, the word with two meanings
	$(BIN)/python benchmarks/toys_hrv.py

toys-patching: $(DEV)  ## which blocks, heads and steps of the toy UNet carry colour
	$(BIN)/python benchmarks/patching_colour.py --write

clean:  ## remove what builds and tests left behind
	rm -rf .cache build dist site .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks training examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## remove .venv as well
	rm -rf .venv
