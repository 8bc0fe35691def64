# setup: the environment; demo: the whole night on an embedded S3 server; test, bench, lint: as they say.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test bench lint

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m codec.warm
	touch $@

demo: setup
	$(BIN)/nightpress demo

test: setup
	deploy/install-test-packages
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python tests/bench/run.py

lint: setup
	$(BIN)/ruff check .
