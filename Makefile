# Every target sets up what it needs and can be repeated at no cost.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := $(shell cat requirements.lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.medray-$(LOCK)

.PHONY: setup demo test fast numbers chaos check fix clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "medray needs Python 3.11 to 3.13; say which: make setup PYTHON=python3.12" >&2; exit 2; }
	@echo "setup: virtual environment in $(VENV), about 6 GB of locked packages"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet "uv>=0.5,<1"
	@$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.medray-* && touch $@
	@echo "setup: done, activate with: . $(BIN)/activate"

demo: setup
	@$(BIN)/python -m medray.demo --out demo-out

check: setup
	@$(BIN)/ruff format --check medray jobs tests
	@$(BIN)/ruff check medray jobs tests
	@$(BIN)/mypy
	@$(BIN)/lint-imports

SPREAD := --numprocesses logical --maxprocesses 8 --dist worksteal

# A training waits for its processes more than it computes: two local Rays at a time, a module each.
TWO_RAYS := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Both run, whatever the first one says.
test: check
	@$(BIN)/python -m pytest -m "not ray" $(SPREAD); rest=$$?; \
		$(BIN)/python -m pytest -m ray $(TWO_RAYS) && exit $$rest

fast: setup
	@$(BIN)/python -m pytest -m "not ray and not slow" $(SPREAD) tests/unit tests/test_*.py

numbers: setup
	@$(BIN)/python -m tests.benchmarks.numbers --out numbers-out

chaos: setup
	@$(BIN)/medray chaos --kills 20 --out numbers-out/chaos

fix: setup
	@$(BIN)/ruff check --fix medray jobs tests
	@$(BIN)/ruff format medray jobs tests

clean:
	@rm -rf demo-out numbers-out .mypy_cache .ruff_cache .pytest_cache
