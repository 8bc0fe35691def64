# setup: the environment; demo: the whole night on an embedded S3 server; check: lint, types, fast tests; test: check and
# all other tests; bench: the measurements; format: ruff's; lock: requirements.lock anew from pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check
# Two processes of tests, one thread each; a file's tests stay together, since they share servers and trained models.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo check test bench format lock

setup: $(VENV)/.ready

# The lock names everything, so that nothing is left to resolve (--no-deps).
$(VENV)/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install --quiet --no-deps -r requirements.lock
	$(BIN)/python $(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m codec.precompile
	touch $@

demo: setup
	$(BIN)/nightpress demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not server"

test: check
	deploy/install-test-packages
	$(PYTEST) -m "slow or server"

bench: setup
	$(BIN)/python tests/bench/run.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps the versions that are in the lock where pyproject.toml allows them; `make lock KEEP=` takes the newest ones.
KEEP ?= --constraint requirements.lock
lock:
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python $(PIP) install --quiet $(KEEP) --editable ".[dev]"
	echo "# Exact versions of what \`make setup\` installs; written by \`make lock\`, which CONTRIBUTING.md explains." > .lock/lock
	.lock/bin/python $(PIP) freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//' >> .lock/lock
	mv .lock/lock requirements.lock && rm -rf .lock
