# Start with `make demo` and `make test`. `make check` must pass before a change is merged.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest
# Without bytecode files, each of the many processes that tests start would compile Ray again, all at the same time.
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
unexport PYTHONDONTWRITEBYTECODE
# The version of Ray to test with, such as 2.52.0. Default: the newest.
RAY ?=
# The version of coverage to test with, such as 7.6.0.
COVERAGE ?=
# Each file runs in one process, so that shared fixtures are set up once; tests that share nothing are distributed freely
# (tests/conftest.py).
# Tests often wait for other processes, so use one process more than a small machine has cores.
PROCESSES ?= 3
XDIST = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# Only the tests in tests/quarantine.txt are retried, once, and listed at the end.
XDIST += $(if $(shell grep -svE '^(\#|$$)' tests/quarantine.txt),-p rerunfailures)
# The parity tests that `make test-core` runs, as a -k expression of pytest.
CONTRACT ?=

.PHONY: demo test test-all test-core parity compatibility sdk sdk-remote tutorial bench bench-quick compare lint types check format clean help

help:
	@echo "make demo           Run the example plugin's tests in process, on a Ray actor and as Ray jobs"
	@echo "make test           Run the project's tests and show where the time was spent"
	@echo "make test-all       Run the project's tests, including those marked thorough"
	@echo "make test-core      Run the tests of the runtime, and the parity tests in all modes"
	@echo "make parity         Run the parity tests and regenerate docs/parity.md"
	@echo "make compatibility  Run the tests with other pytest plugins and regenerate docs/compatibility.md"
	@echo "make tutorial       Run the tutorial's commands and regenerate docs/tutorial.md"
	@echo "make sdk            Run the tests with the real synapse-sdk, on Python 3.12"
	@echo "make sdk-remote     Run the real synapse-sdk, on Python 3.12, as a client of synapse serve"
	@echo "make bench          Run the benchmarks and regenerate docs/performance.md and its charts (5 minutes)"
	@echo "make bench-quick    Run the benchmarks with few rounds and print the table (2 minutes)"
	@echo "make compare        Compare with synapse-sdk, on Python 3.12, and regenerate docs/performance.md"
	@echo "make lint           Check style and import rules with ruff and import-linter"
	@echo "make types          Check the types with mypy"
	@echo "make format         Format the code with ruff"
	@echo "make check          Run lint, types, test and demo"
	@echo "make clean          Remove .venv and caches"

demo: $(VENV)/.demo
	$(PYTEST) example_plugin --synapse-mode=all -v

test: $(VENV)/.dev$(RAY)
	$(PYTEST) $(XDIST) -m "not thorough" --junitxml=$(VENV)/tests.xml --suite-profile=$(VENV)/suite-profile.json
	$(BIN)/python docs/make_parity_page.py $(VENV)/tests.xml --check
	$(BIN)/python docs/make_compatibility_page.py $(VENV)/tests.xml --check

test-all: $(VENV)/.dev$(RAY)
	$(PYTEST) $(XDIST)

test-core: $(VENV)/.dev$(RAY)
	$(PYTEST) tests/runtime $(XDIST)
	$(PYTEST) tests/parity $(XDIST) -m "not thorough" -k "$(CONTRACT)"

parity: $(VENV)/.dev$(RAY)
	$(PYTEST) tests/parity -m "not thorough" -v --junitxml=$(VENV)/parity.xml
	$(BIN)/python docs/make_parity_page.py $(VENV)/parity.xml

compatibility: $(VENV)/.dev$(RAY)
	$(PYTEST) tests/pytest_synapse/test_other_plugins.py -v --junitxml=$(VENV)/compatibility.xml
	$(BIN)/python docs/make_compatibility_page.py $(VENV)/compatibility.xml

tutorial: $(VENV)/.dev$(RAY)
	$(BIN)/python docs/make_tutorial.py

# SDK_PYTHON=… is the path of Python 3.12 if it is not found as python3.12; SDK_TESTS=… selects tests by a -k expression.
sdk: $(VENV)/.dev$(RAY)
	$(BIN)/nox --session sdk $(if $(SDK_PYTHON),--force-python $(SDK_PYTHON)) $(if $(SDK_TESTS),-- -k "$(SDK_TESTS)")

sdk-remote: $(VENV)/.dev$(RAY)
	$(BIN)/nox --session sdk_remote $(if $(SDK_PYTHON),--force-python $(SDK_PYTHON))

bench: $(VENV)/.dev$(RAY)
	$(BIN)/python -m benchmarks --out docs/performance; status=$$?; $(BIN)/python docs/make_performance_page.py && exit $$status

# Writes table, JSON and chart to a directory, for CI to archive.
bench-quick: $(VENV)/.dev$(RAY)
	$(BIN)/python -m benchmarks --quick --out $(VENV)/bench

compare: $(VENV)/.dev$(RAY)
	$(BIN)/nox --session compare $(if $(SDK_PYTHON),--force-python $(SDK_PYTHON))
	$(BIN)/python docs/make_performance_page.py

lint: $(VENV)/.dev$(RAY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

types: $(VENV)/.dev$(RAY)
	$(BIN)/mypy

check: lint types test demo

format: $(VENV)/.dev$(RAY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# If UV names a uv executable, creating the environment takes a second. It includes pip, since some tests install packages.
$(VENV)/.pip:
ifdef UV
	$(UV) venv --quiet --seed --clear --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python 'uv>=0.6'
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' 'uv>=0.6'
endif
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	$(INSTALL) --editable '.[ray,remote,server]' --group example
	@touch $@

$(VENV)/.dev$(RAY): $(VENV)/.pip pyproject.toml
	$(INSTALL) --editable '.[all]' --group dev $(if $(RAY),'ray[default]==$(RAY)') $(if $(COVERAGE),'coverage==$(COVERAGE)')
	@touch $@
