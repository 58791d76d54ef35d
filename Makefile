# From a fresh clone, with Python 3.11 or newer and make: `make demo`, `make test`.
# Everything is installed into .venv; nothing outside of this folder is changed.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	&& echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
PYTEST_ARGS ?=
EXPLORE_ARGS ?=
FAILOVER_ARGS ?=
MUTANTS_ARGS ?=
STORM_ARGS ?=
# Where the servers of the matrix look for one more (see tools/test_matrix.py).
PG_VERSIONS ?=

# Instead of the whole of `make bench` and its report, as "record fused --form long".
BENCH_ARGS ?=
# As "sessions kept --form long".
GROW_ARGS ?=

.PHONY: help demo test bench prove beyond failover storm storm-share mutants explore explore-share fuzz test-matrix test-pooler pooler-share grow lint format generate clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo         survey the Hubble deep field with four workers, and watch'
	@echo 'make test         run the tests (PYTEST_ARGS="-k name" for some of them)'
	@echo 'make prove        try to refute it: a bounded share of each of the long tests'
	@echo 'make beyond       proxies, standbys, full disks, time-outs, sessions ended'
	@echo 'make fuzz         call every function with input that nobody should send'
	@echo 'make failover     kill a primary and promote its standby, again and again, and take the time'
	@echo 'make mutants      break what ships in a hundred ways and more, and see each noticed'
	@echo 'make test-matrix  run them on every PostgreSQL found here'
	@echo 'make storm        kill clients, sessions and the server for an hour (STORM_ARGS="--minutes 5")'
	@echo 'make test-pooler  run them through a PgBouncer in transaction pooling'
	@echo 'make explore      look for a schedule that breaks a rule (EXPLORE_ARGS="--seconds 3600")'
	@echo 'make bench        measure against the server and the peers, in 10 minutes (docs/performance.md)'
	@echo 'make grow         the same as things grow, in 8 minutes (docs/growth.md)'
	@echo 'make lint         check style, types and SQL'
	@echo 'make format       format the Python files'
	@echo 'make generate     make the synchronous client from the asynchronous one'
	@echo 'make clean        remove what these made'

demo: $(VENV)/.demo
	$(BIN)/pyjobs demo

# Three at a time for two cores: a part of the time is waiting.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 3 --dist worksteal $(PYTEST_ARGS)

# What takes too long for every day; each part has a longer form of its own.
prove: beyond pooler-share storm-share explore-share fuzz mutants

# On a standby, at the server's limits; and what takes too long for every day.
beyond: $(VENV)/.test
	$(BIN)/python -m pytest -m 'beyond or long' -n 2 --dist worksteal $(PYTEST_ARGS)

# How long there is no service when a standby takes over, beside plain clients on the same pair.
failover: $(VENV)/.test
	$(BIN)/python -m tests.beyond.failover $(FAILOVER_ARGS)

# Two at a time; each in a copy of sql/ and a database of its own (docs/mutants.md).
mutants: $(VENV)/.test
	$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

test-matrix: $(VENV)/.test
	$(BIN)/python tools/test_matrix.py --download '$(PG_VERSIONS)' -- -n 2 $(PYTEST_ARGS)

# Every function under input that nobody should send; PYJOBS_FUZZ=20000 for more of it.
fuzz: $(VENV)/.test
	$(BIN)/python -m pytest -m fuzz tests/test_fuzz.py -n 2 --dist worksteal $(PYTEST_ARGS)

test-pooler: $(VENV)/.test
	PYJOBS_TEST_POOLER=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# The client, the worker, the command line, races and crashes.
pooler-share: $(VENV)/.test
	PYJOBS_TEST_POOLER=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS) \
		$(foreach name,client client_lost_answers worker cli races crash,tests/test_$(name).py)
	$(BIN)/python -m tests.storm --pooler --minutes 1

explore: $(VENV)/.test
	$(BIN)/python -m tests.explorer run $(EXPLORE_ARGS)

# Fails if it does not get through them in 15 minutes.
explore-share: $(VENV)/.test
	$(BIN)/python -m tests.explorer run --schedules 20000 --seconds 900 --workers 2

storm: $(VENV)/.test
	$(BIN)/python -m tests.storm $(STORM_ARGS)

storm-share: $(VENV)/.test
	$(BIN)/python -m tests.storm --minutes 2

# Its own server, on disk; the peers from pip in an environment of their own below build/.
bench: $(VENV)/.bench
	$(BIN)/python -m bench run $(or $(BENCH_ARGS),--report docs/performance.md)

# As sessions, jobs, history and bytes grow, beside the server's limit.
grow: $(VENV)/.bench
	$(BIN)/python -m bench grow $(GROW_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/generate.py --check
	$(BIN)/python tools/lint_sql.py --server

format: $(VENV)/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: $(VENV)/.test
	$(BIN)/python tools/generate.py

clean:
	rm -rf $(VENV) .pg build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps are as old as the last installation; a changed pyproject.toml asks for another.
$(VENV)/.made:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or newer found; name one: make PYTHON=...'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'Could not make a virtual environment (on Debian: apt install python3-venv).'; exit 1; }
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo 'Installing the demo into $(VENV) ...'
	@$(PIP) --editable '.[demo,embedded,binary]'
	@touch $@

$(VENV)/.bench: $(VENV)/.made pyproject.toml
	@echo 'Installing the bench into $(VENV) ...'
	@$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo 'Installing the tests into $(VENV) ...'
	@$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.demo $(VENV)/.bench
