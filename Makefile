# Everything a newcomer needs: `make demo`, `make test`. `make check` is what must pass before a change lands.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python
# A version of Ray to test with, such as 2.52.0: the newest, if none is given.
RAY ?=
# The same for coverage, such as 7.6.0.
COVERAGE ?=
# Each file in one process, so that the cluster which its tests share starts once. They often wait for other processes,
# so there is one more than a small machine has cores.
XDIST := -n 3 --dist loadfile --no-loadscope-reorder
# The tests that failed beside others, once more and alone: what fails then, fails. The output tells which they were; each is
# a fault, of a test or of the product, but none of the change that is at hand.
define once_more
{ [ $$? -eq 1 ] && echo "== failed beside others; once more, alone" && \
	$(PYTEST) --last-failed --last-failed-no-failures none --exitfirst -v $(1); }
endef
# Which of the contract's tests `make test-core` runs, as pytest's -k takes it.
CONTRACT ?=

.PHONY: demo test test-all test-core parity compatibility sdk tutorial bench bench-quick compare lint types check format clean help

help:
	@echo "make demo    the example plugin's tests, in process, on a Ray actor and as Ray jobs"
	@echo "make test    the project's own tests"
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
	@rm -f $(VENV)/tests*.xml
	$(PYTEST) $(XDIST) -m "not thorough" --junitxml=$(VENV)/tests.xml || \
		$(call once_more,-m "not thorough" --junitxml=$(VENV)/tests-alone.xml)
	results="$(VENV)/tests.xml $$(ls $(VENV)/tests-alone.xml 2>/dev/null || true)" && \
		$(BIN)/python docs/make_parity_page.py $$results --check && \
		$(BIN)/python docs/make_compatibility_page.py $$results --check

test-all: $(VENV)/.dev$(RAY)
	$(PYTEST) $(XDIST)

test-core: $(VENV)/.dev$(RAY)
	$(PYTEST) tests/runtime $(XDIST) || $(call once_more,tests/runtime)
	$(PYTEST) tests/parity $(XDIST) -m "not thorough" -k "$(CONTRACT)" || \
		$(call once_more,tests/parity -m "not thorough" -k "$(CONTRACT)")

parity: $(VENV)/.dev$(RAY)
	$(PYTEST) tests/parity -m "not thorough" -v --junitxml=$(VENV)/parity.xml
	$(BIN)/python docs/make_parity_page.py $(VENV)/parity.xml

compatibility: $(VENV)/.dev$(RAY)
	$(PYTEST) tests/pytest_synapse/test_neighbours.py -v --junitxml=$(VENV)/compatibility.xml
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

types: $(VENV)/.dev$(RAY)
	$(BIN)/mypy

check: lint types test demo

format: $(VENV)/.dev$(RAY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' 'uv>=0.6'
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	$(INSTALL) --editable '.[ray]' --group example
	@touch $@

$(VENV)/.dev$(RAY): $(VENV)/.pip pyproject.toml
	$(INSTALL) --editable '.[all]' --group dev $(if $(RAY),'ray[default]==$(RAY)') $(if $(COVERAGE),'coverage==$(COVERAGE)')
	@touch $@
