# Two commands matter: `make run` and `make test`. Everything installed goes into .venv, everything saved into data/.

.DEFAULT_GOAL := help
.PHONY: help run test lint format lock screenshots sim chaos outage speeds nonsense bench bench-peers clean
.SUFFIXES:

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
KLAGG := --no-deps --no-build-isolation --editable .
JOBS ?= 2

help:
	@echo 'make run     install klagg into .venv and run it: the page is on http://127.0.0.1:8080, Ctrl-C ends it'
	@echo 'make test    lint, then all tests (browser tests where Chromium is found)'
	@echo 'make lint    ruff and mypy'
	@echo 'make format  let ruff format the code'
	@echo 'make lock    choose the newest versions that pyproject.toml allows'
	@echo 'make screenshots  take the pictures of docs/screenshots anew (needs Chromium)'
	@echo 'make sim     play thousands of seeds of faults on virtual time; SEED=7 plays one again'
	@echo 'make chaos   kill and stop everything at random under load, and compare with the truth'
	@echo 'make outage  take the database away for ten minutes under load, and compare with the truth'
	@echo 'make speeds  replay recordings at three speeds, and compare what comes out byte for byte'
	@echo 'make nonsense  send the engine messages that make no sense, and see that nothing else changes'
	@echo 'make bench   measure speed and memory'
	@echo 'make bench-peers  measure the engine beside what others would use'
	@echo 'make clean   remove .venv and what tools left behind; data/ stays'

# supervisord opens the terminal anew for each log, which fails where that is a socket or belongs to another user (su):
# there, all of them get a pipe. Root is named because supervisord scolds a root who is not. TZ is for the times of its own
# lines; the rooms' are in UTC anyway.
run: .venv/installed
	@$(BIN)/klagg check
	@if ! (: >>/dev/stdout) 2>/dev/null; then \
		rm -f .venv/log; mkfifo .venv/log; cat <.venv/log & exec >.venv/log 2>&1; rm -f .venv/log; \
	fi; \
	if [ "$$(id -u)" = 0 ]; then set -- --user=root; fi; \
	TZ=UTC exec $(BIN)/supervisord -c supervisord.conf "$$@"

# Tests of what is pure, and what they reach of it. To measure costs a third more CPU, so it is done where it says most: all
# else runs in compiled code or in processes of its own.
PURE := $(patsubst %,tests/engine/test_%.py,audit comparison dirty encoding engine gaps health kernel liveness marks passing \
		proof repair repair_budget repair_unexplained rewriting saving seeding snapshots symbols validation window) \
	$(patsubst %,tests/ingest/test_%.py,clock decimals decode ingest messages rate_limit recent scan stale_streams \
		symbols trade_fetch_backoff) \
	$(patsubst %,tests/viz/test_%.py,hub rows status)
COVERED_MIN := 93

# The tests of the whole system keep every core busy by themselves, and promise seconds: one after the other.
test: lint
	$(BIN)/python -m pytest -rs -n $(JOBS) --dist loadfile --cov --cov-fail-under=$(COVERED_MIN) $(PURE)
	$(BIN)/python -m pytest -rs -n $(JOBS) --dist loadfile -m 'not pipeline' $(PURE:%=--ignore=%)
	$(BIN)/python -m pytest -rs -m pipeline --durations=5

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# In an environment of its own. What is installed is what stands in these two files, on each Python that klagg runs on.
LOCK := .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' pyproject.toml -
lock: .venv-lock/bin/uv
	echo setuptools | $(LOCK) --output-file requirements.txt
	echo setuptools | $(LOCK) --extra test --constraint requirements.txt --output-file requirements-test.txt

.venv-lock/bin/uv:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet uv

# make sim SEED=7, make sim SEEDS=100 BEGIN=5000
sim: .venv/installed-test
	$(BIN)/python -m tests.seeds $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),10000) --begin $(or $(BEGIN),0))

# make chaos SECONDS=60 SEED=7
chaos: .venv/installed-test
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

# make outage SECONDS=60
outage: .venv/installed-test
	$(BIN)/python -m tests.outage --seconds $(or $(SECONDS),600)

# make nonsense SEED=7
nonsense: .venv/installed-test
	$(BIN)/python -m tests.nonsense --seed $(or $(SEED),1) --runs $(or $(RUNS),200)

# make speeds, make speeds FILES=recording.jsonl.gz STREAM=trade
speeds: .venv/installed-test
	$(BIN)/python -m tests.speeds $(FILES) --stream $(or $(STREAM),aggTrade)

screenshots: .venv/installed-test
	$(BIN)/python -m tests.screenshots

bench: .venv/installed-test
	$(BIN)/python -m bench

# In an environment of their own: what others would use is nothing that klagg needs.
bench-peers: .venv-peers/installed
	.venv-peers/bin/python -m bench.peers

.venv-peers/installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint requirements.txt --editable . polars duckdb pandas
	.venv-peers/bin/python -m pip install --quiet nautilus_trader || echo 'nautilus_trader cannot be installed here'
	.venv-peers/bin/python -m pip install --quiet cryptofeed || echo 'cryptofeed cannot be installed here'
	.venv-peers/bin/python -m pip install --quiet mdp-outbox || echo 'mdp-outbox cannot be installed here: it needs Python 3.12'
	touch $@

clean:
	rm -rf .venv .venv-lock .venv-peers build .compiled *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What pip installed names the folder in which it did so. In another one, all of it would run what lies in the old place.
ifneq ($(wildcard $(BIN)/klagg),)
MOVED := $(shell venv="$$(pwd -P)/.venv/bin/python"; \
	grep -qF -e "!$$venv" -e "exec' $$venv" -e "exec' \"$$venv\"" $(BIN)/klagg || echo moved)
endif
.PHONY: moved
moved:
	@echo 'The checkout was moved: .venv is made anew.'
	@rm -rf .venv

# Installed anew only when what is needed has changed since, or the checkout was moved.
.venv/installed: pyproject.toml requirements.txt $(MOVED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "klagg needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)."; \
		echo 'Name another one: make run PYTHON=python3.12'; exit 1; }
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ rm -rf .venv; $(PYTHON) -m venv .venv; } || \
		{ rm -rf .venv; echo 'No virtual environment without venv: apt-get install python3-venv (Debian, Ubuntu).'; exit 1; }
	@echo 'Installing klagg and what it needs into .venv: a minute or two, about 450 MB.'
	@$(PIP) --requirement requirements.txt
	@$(PIP) $(KLAGG)
	@touch $@

.venv/installed-test: .venv/installed requirements-test.txt
	@echo 'Installing what the tests need.'
	@$(PIP) --requirement requirements-test.txt
	@touch $@
