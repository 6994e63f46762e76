# sgsfa: `make setup` once, then `make demo`. Needs python3 (3.11 or newer) and make, nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN ?= $(VENV)/bin
# An environment that is ready already: make test SETUP= BIN=/path/to/its/bin
SETUP ?= $(VENV)/.installed
WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs bench clean distclean

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(SETUP)  ## create .venv and install the locked dependencies and sgsfa into it

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sgsfa needs Python 3.11 or newer; name one: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@# --no-deps: the lock names everything. Older pips would look for extras (coverage[toml]) beyond it, and refuse
	@# the first release that is newer than the lock.
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps -e .
	$(VENV)/bin/python -m pip check --disable-pip-version-check
	@touch $@

demo: $(SETUP)  ## the whole pipeline on rendered people, about ten minutes on two cores
	@$(BIN)/python -m sgsfa_cli run --preset demo

test: $(SETUP)  ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) $(PYTEST_ARGS)

lint: $(SETUP)  ## style, types, import rules and wording
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	PATH="$(BIN):$$PATH" lint-imports
	$(BIN)/python -m pre_commit run wording --all-files

docs: $(SETUP)  ## build the documentation site into site/, strictly and offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(SETUP)  ## measure masks, rendering, training and matching, some 30 minutes; figures are printed
	$(BIN)/python -m benchmarks.masks
	$(BIN)/python -m benchmarks.synth_speed
	$(BIN)/python -m benchmarks.synth_difficulty
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.matching

clean:  ## remove caches and build folders; artifacts and .venv stay
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov
	rm -f .coverage .coverage.*
	find pipeline sgsfa_cli sgsfa_synth tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also remove .venv
	rm -rf $(VENV)
