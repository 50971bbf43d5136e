# The two commands a newcomer needs are `make demo` and `make test`; the rest is for contributors.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

TUNER_TESTS := tests/tuner tests/gpu tests/known tests/test_benchmarks.py tests/test_search_benchmark.py
ENGINE_TESTS := tests/reference \
	$(filter-out tests/contracts/test_queue% tests/contracts/test_launchers.py,$(wildcard tests/contracts/test_*.py))

# Kills processes at times that only an otherwise quiet machine keeps.
TIMED_TESTS := tests/contracts/test_queue_kills.py
DOCS_TESTS := tests/examples tests/test_docs.py
# Each starts processes of its own.
PROCESS_TESTS := tests/service/agent tests/service/cli tests/service/launchers tests/service/worker
# A Ray cluster each, for which they wait most of the time.
CLUSTER_TESTS := tests/contracts/test_launchers.py tests/acceptance/test_cluster.py

.PHONY: demo test coverage test-tuner test-engines test-acceptance test-processes test-docs test-cluster test-service check serve fmt install clean

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

# The suites share the cores: threads of torch's own would only wait for each other.
test coverage test-tuner test-engines test-acceptance test-processes test-docs test-cluster test-service: export OMP_NUM_THREADS = 1

test: $(STAMP)
	$(PYTEST) -q --doctest-modules --ignore=service/db/migrations tuner service
	$(MAKE) --no-print-directory -j4 test-tuner test-acceptance test-processes test-docs test-service \
		test-cluster test-engines
	$(PYTEST) $(TIMED_TESTS)

# The same, counting which lines and branches ran, in child processes too; it takes almost twice as long.
coverage: $(STAMP)
	$(BIN)/coverage erase
	$(MAKE) --no-print-directory test PYTEST="$(BIN)/coverage run -m pytest"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

# Four at a time: the first computes, the others wait for processes and databases in between. The last three begin as
# others end.
test-tuner:
	$(PYTEST) $(TUNER_TESTS)

test-engines:
	$(PYTEST) $(ENGINE_TESTS)

test-service:
	$(PYTEST) $(TUNER_TESTS:%=--ignore=%) $(ENGINE_TESTS:%=--ignore=%) --ignore=tests/acceptance \
		$(DOCS_TESTS:%=--ignore=%) $(PROCESS_TESTS:%=--ignore=%) $(CLUSTER_TESTS:%=--ignore=%) \
		$(TIMED_TESTS:%=--ignore=%)

test-processes:
	$(PYTEST) $(PROCESS_TESTS)

test-acceptance:
	$(PYTEST) tests/acceptance $(CLUSTER_TESTS:%=--ignore=%)

test-cluster:
	$(PYTEST) $(CLUSTER_TESTS)

test-docs:
	$(PYTEST) $(DOCS_TESTS)

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
