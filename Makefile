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
CPU ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNS := $(VENV)/.installed-for-runs
CPU_INDEX := https://download.pytorch.org/whl/cpu
UV := $(shell command -v uv 2>/dev/null)
# uv is fast, but does not read pip's settings, such as another index: where it cannot, pip does.
install = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt $(if $(CPU),--torch-backend cpu) $1 || )\
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(CPU),--extra-index-url $(CPU_INDEX)) $1
OVERRIDES = $(if $(filter command,$(firstword $(origin DATA))),data=$(DATA)) $(if $(ATTACK),attack=$(ATTACK)) \
	$(if $(AGGREGATOR),aggregator=$(AGGREGATOR)) $(if $(DEFENSE),'defenses={$(DEFENSE): $(DEFENSE)}') $(if $(SWEEP),sweep=$(SWEEP)) \
	$(if $(TRIALS),sweep.trials=$(TRIALS)) $(if $(JOBS),sweep.jobs=$(JOBS)) $(if $(SEED),seed=$(SEED)) $(SET)

.DEFAULT_GOAL := help
.PHONY: help setup demo sweep reproduce ui test test-slow lint bench docs data clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14
	@echo
	@echo "variables: EXPERIMENT=$(EXPERIMENT) ATTACK=cmp AGGREGATOR=krum DEFENSE=pdrr SWEEP=pareto TRIALS=12 JOBS=2 SEED=0 SET='rounds=5 attack.boost=3' TABLE=cmp:table-4 DATA=$(DATA) PORT=$(PORT) PYTHON=$(PYTHON) CPU=$(CPU)"

setup: $(STAMP)  ## make .venv and install everything in it (a few minutes, once); CPU=1: a torch without CUDA

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1); name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -n "$(CPU)" || command -v nvidia-smi >/dev/null || \
		echo "no GPU was found: 'make $(MAKECMDGOALS) CPU=1' takes a torch without CUDA, which is much smaller (Linux)"
	@echo "installing into $(VENV); PyTorch is large, this takes a few minutes"

$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(call install,-e '.[dev]')
	$(BIN)/python -m fl_lightning.doctor
	@touch $(RUNS) $(STAMP)

# What runs and searches need, without what only tests and developers do.
$(RUNS): pyproject.toml constraints.txt | $(BIN)/pip
	$(call install,-e .)
	$(BIN)/python -m fl_lightning.doctor
	@touch $(RUNS)

demo: $(RUNS)  ## one small experiment on bundled data: seconds
	$(BIN)/fl-lightning run digits $(if $(SEED),seed=$(SEED)) $(SET)

sweep: $(RUNS)  ## search the strongest attack on EXPERIMENT: minutes
	$(BIN)/fl-lightning sweep $(EXPERIMENT) $(OVERRIDES)

reproduce: setup  ## run what is not recorded of the papers' tables (TABLE=cmp:table-4), verdicts in docs/results.md
	$(BIN)/fl-lightning reproduce $(TABLE) --jobs $(or $(JOBS),2)
	$(BIN)/python docs/results.py

ui: $(RUNS)  ## look at all runs in the browser (PORT; Optuna's dashboard on the next one)
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
	$(call install,-e '.[docs]')
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --config-file mkdocs.yml

data: $(RUNS)  ## get the data sets named in DATA
	$(BIN)/fl-lightning data get $(DATA)

clean:  ## remove caches and build products; keeps .venv and mlruns/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find fl_lightning tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
