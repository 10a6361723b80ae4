# Everything a checkout can do. Needs Python 3.11 or newer with venv and pip, and make.
# `make demo PYTHON=python3.12` chooses another Python; `PIP_FLAGS=...` is passed on to pip.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PIP_FLAGS ?=
PAGE := sfumato-page
RUNS := runs

BIN := $(VENV)/bin
# --no-compile: the first import compiles what is needed, pip would compile all of it.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile \
	--prefer-binary -c constraints.txt $(PIP_FLAGS)
STAMP = $(VENV)/.installed-$(1)
# Memory once taken is kept: less time in page faults. One thread a worker: the workers share the cores.
FAST := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs format clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(call STAMP,base) ## Audit four defenses on handwritten digits and write a page (minutes, no download of data)
	$(FAST) $(BIN)/sfumato audit --runs $(RUNS) --out $(PAGE)

test: $(call STAMP,test) ## Run all tests with coverage
	$(FAST) $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term

lint: $(call STAMP,dev) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(call STAMP,dev) ## Check types
	$(BIN)/mypy

docs: $(call STAMP,docs) ## Build the documentation; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "The documentation: $(CURDIR)/docs/_build/html/index.html"

format: $(call STAMP,dev) ## Repair style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what was built, but neither .venv nor runs
	rm -rf $(PAGE) docs/_build build dist .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("sfumato needs Python 3.11 or newer; choose one: make PYTHON=python3.12 ..." \
		if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# Installed once, and again when what is to be installed changes. `base` is what users get; the rest are extras.
$(call STAMP,base): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(call STAMP,%): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[$*]'
	@touch $@
