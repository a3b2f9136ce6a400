# Everything a newcomer needs: `make demo`, `make test`. `make check` is what must pass before a change lands.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest
# Without bytecode files each of the many processes that tests start would compile Ray anew, all of them at once.
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
unexport PYTHONDONTWRITEBYTECODE
# A version of Ray to test with, such as 2.52.0: the newest, if none is given.
RAY ?=
# The same for coverage, such as 7.6.0.
COVERAGE ?=
# Each file in one process, so that what its tests share is made once; tests that share nothing go to any (tests/conftest.py).
# They often wait for other processes, so there is one more than a small machine has cores.
PROCESSES ?= 3
XDIST = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# A test that fails is a failure. Only those of tests/quarantine.txt are retried, once, and listed at the end.
XDIST += $(if $(shell grep -svE '^(\#|$$)' tests/quarantine.txt),-p rerunfailures)
# Which of the contract's tests `make test-core` runs, as pytest's -k takes it.
CONTRACT ?=

.PHONY: demo test test-all test-core parity compatibility sdk tutorial bench bench-quick compare lint types check format clean help

help:
	@echo "make demo    the example plugin's tests, in process, on a Ray actor and as Ray jobs"
	@echo "make test    the project's own tests, and where their time went"
	@echo "make test-all  those too that are marked thorough"
	@echo "make test-core   those of the runtime, and the contract's in all modes"
	@echo "make parity  the contract's tests, and the page that tells of them"
	@echo "make compatibility  the tests with other pytest plugins, and the page that tells of them"
	@echo "make tutorial  the tutorial's commands, and the page with their screens"
	@echo "make sdk     the tests with the real synapse-sdk, on Python 3.12"
	@echo "make bench   how fast it is beside what is possible, the page that tells of it, and its pictures: 5 minutes"
	@echo "make bench-quick  the same table in 2 minutes, for the terminal"
	@echo "make compare how fast it is beside synapse-sdk, on Python 3.12, and the page that tells of it"
	@echo "make lint    style"
	@echo "make types   strict type check"
	@echo "make check   lint, types, test and demo"

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

# SDK_PYTHON=… names a Python 3.12 that is not found as python3.12; SDK_TESTS=… are those to run, as pytest's -k takes it.
sdk: $(VENV)/.dev$(RAY)
	$(BIN)/nox --session sdk $(if $(SDK_PYTHON),--force-python $(SDK_PYTHON)) $(if $(SDK_TESTS),-- -k "$(SDK_TESTS)")

bench: $(VENV)/.dev$(RAY)
	$(BIN)/python -m benchmarks --out docs/performance; status=$$?; $(BIN)/python docs/make_performance_page.py && exit $$status

# Table, JSON and picture are left in a directory for whoever keeps them.
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

# With a uv at hand, which UV names, an environment takes a second; pip is in it as some tests install packages.
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
	$(INSTALL) --editable '.[ray]' --group example
	@touch $@

$(VENV)/.dev$(RAY): $(VENV)/.pip pyproject.toml
	$(INSTALL) --editable '.[all]' --group dev $(if $(RAY),'ray[default]==$(RAY)') $(if $(COVERAGE),'coverage==$(COVERAGE)')
	@touch $@
