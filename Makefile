# The two commands a newcomer needs are `make demo` and `make test`; the rest is for contributors.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check serve fmt install clean

install: $(STAMP)

# Reinstalls when the project's needs change; `touch pyproject.toml` forces it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cliptune needs Python 3.11 or later: run make PYTHON=python3.11")'
	@echo "installing into $(VENV); torch is the large part"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/cliptune demo

serve: $(STAMP)
	$(BIN)/cliptune serve

test: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q --doctest-modules --ignore=service/db/migrations tuner service
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
