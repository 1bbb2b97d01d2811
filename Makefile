# Everything starts here: `make` shows what there is.
PYTHON ?= python3
ATTACK ?=
AGGREGATOR ?=
DEFENSE ?=
SWEEP ?=
EXPERIMENT ?= $(if $(ATTACK)$(AGGREGATOR)$(DEFENSE),mnist,mnist_backdoor)
TRIALS ?=
JOBS ?=
SEED ?=
SET ?=
DATA ?= mnist
TABLE ?= all
PORT ?= 5000

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OVERRIDES = $(if $(filter command,$(firstword $(origin DATA))),data=$(DATA)) $(if $(ATTACK),attack=$(ATTACK)) \
	$(if $(AGGREGATOR),aggregator=$(AGGREGATOR)) $(if $(DEFENSE),'defenses={$(DEFENSE): $(DEFENSE)}') $(if $(SWEEP),sweep=$(SWEEP)) \
	$(if $(TRIALS),sweep.trials=$(TRIALS)) $(if $(JOBS),sweep.jobs=$(JOBS)) $(if $(SEED),seed=$(SEED)) $(SET)

.DEFAULT_GOAL := help
.PHONY: help setup demo sweep reproduce ui test test-slow lint bench docs data clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14
	@echo
	@echo "variables: EXPERIMENT=$(EXPERIMENT) ATTACK=cmp AGGREGATOR=krum DEFENSE=pdrr SWEEP=pareto TRIALS=12 JOBS=2 SEED=0 SET='rounds=5 attack.boost=3' TABLE=cmp:table-4 DATA=$(DATA) PORT=$(PORT) PYTHON=$(PYTHON)"

setup: $(STAMP)  ## make .venv and install everything in it (a few minutes, once)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1); name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV); PyTorch is large, this takes a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m fl_lightning.doctor
	@touch $(STAMP)

demo: setup  ## one small experiment on bundled data: seconds
	$(BIN)/fl-lightning run digits $(if $(SEED),seed=$(SEED)) $(SET)

sweep: setup  ## search the strongest attack on EXPERIMENT: minutes
	$(BIN)/fl-lightning sweep $(EXPERIMENT) $(OVERRIDES)

reproduce: setup  ## run what is not recorded of the papers' tables (TABLE=cmp:table-4), verdicts in docs/results.md
	$(BIN)/fl-lightning reproduce $(TABLE) --jobs $(or $(JOBS),2)
	$(BIN)/python docs/results.py

ui: setup  ## look at all runs in the browser (PORT; Optuna's dashboard on the next one)
	$(BIN)/fl-lightning ui --port $(PORT)

test: setup  ## the tests of every day
	$(BIN)/python -m pytest -n 2

test-slow: setup  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: setup  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## measure speed; results beside the scripts in benchmarks/, table in docs/measured.md
	@for script in benchmarks/bench_*.py benchmarks/report.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: setup  ## build the documentation site in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --config-file mkdocs.yml

data: setup  ## get the data sets named in DATA
	$(BIN)/fl-lightning data get $(DATA)

clean:  ## remove caches and build products; keeps .venv and mlruns/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find fl_lightning tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
