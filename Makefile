# schnell: `make serve` to use it, `make quick` before a commit, `make test` to check everything.
# `TORCH_INDEX=URL` adds a package index (for a CPU build of torch).

PYTHON ?= python3
OUT ?= docs/measurements
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# every version comes from constraints.txt, so that a release of tomorrow changes nothing here
INSTALL := $(PIP) install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist worksteal
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development

.PHONY: help setup serve test check quick lint unit rest cluster browser soak gpu-check screenshots texts mini mini-evaluate lock hooks clean

help: ## show these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(DEVELOPMENT) ## .venv with everything, also for the tests

serve: $(RUNTIME) ## what runs schnell, then the server itself
	$(BIN)/schnell serve

test: setup check ## set up, then check everything

# what takes one core runs beside what waits, or leaves one free
BESIDE := $(MAKE) --jobs 2 --no-print-directory

check: quick rest ## what `quick` checks, and every other test
	$(BESIDE) cluster browser

quick: $(DEVELOPMENT) ## before each commit: lint, types, layers, unit tests
	$(BESIDE) lint unit

lint: $(DEVELOPMENT) ## format, lint, layers, dependencies, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/mypy

# each test computes in one thread: two teams of OpenMP threads on the same cores take several times as long
unit: $(DEVELOPMENT) ## the unit tests
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit $(SIDE_BY_SIDE)

# two at a time wait for each other's servers
rest: $(DEVELOPMENT)
	OMP_NUM_THREADS=1 $(BIN)/pytest --ignore tests/unit --ignore tests/browser --ignore tests/cluster $(SIDE_BY_SIDE)

# apart from the others: a network of its own
cluster: $(DEVELOPMENT)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/cluster

# apart from the others: Playwright leaves an event loop in its thread
browser: $(DEVELOPMENT)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser $(SIDE_BY_SIDE)

soak: $(DEVELOPMENT) ## the full counts: takes hours
	SCHNELL_SOAK=1 $(BIN)/pytest --timeout 7200

# the system's Python, not the virtual environment's: a machine that is lent with a GPU has torch, and no network
gpu-check: ## FLUX.1 [schnell] at its true size on this machine's NVIDIA GPU, in nine minutes, as in `make gpu-check OUT=/tmp`
	PYTHONPATH=src $(PYTHON) -m schnell.benchmarks.gpu --json $(OUT)/gpu.json --budget 540

screenshots: $(DEVELOPMENT) ## the pictures of the README and the documentation
	$(BIN)/python scripts/screenshots.py

texts: $(DEVELOPMENT) ## bring the texts of the pages into the file of each language (then translate what is empty or fuzzy)
	$(BIN)/python scripts/translations.py

mini: $(DEVELOPMENT) ## make the embedded model from nothing, as in `make mini MINI="--minutes 240"`
	PYTHONPATH=recipes $(BIN)/python -m schnell_mini model $(MINI)

mini-evaluate: $(DEVELOPMENT) ## the embedded model's figures, as in `make mini-evaluate MINI="--limit 10"`
	PYTHONPATH=recipes $(BIN)/python -m schnell_mini model --evaluate $(MINI)

lock: ## constraints.txt anew: the newest versions that pyproject.toml allows
	$(PYTHON) scripts/lock.py

hooks: $(DEVELOPMENT) ## git checks each commit, and runs `quick` before a push
	$(BIN)/pre-commit install

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "schnell needs Python 3.11 or newer: apt-get install python3 python3-venv (or PYTHON=/path/to/python make ...)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "this Python has no venv: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUNTIME): pyproject.toml constraints.txt | $(VENV)/.python
	@echo "installing schnell and its libraries into $(VENV) (a few minutes the first time)" >&2
	$(INSTALL) --editable .
	@touch $@

$(DEVELOPMENT): $(RUNTIME) scripts/dev_requirements.py scripts/install_browser.sh
	$(BIN)/python scripts/dev_requirements.py > $(VENV)/dev-requirements.txt
	$(INSTALL) --requirement $(VENV)/dev-requirements.txt
	sh scripts/install_browser.sh $(BIN)
	@touch $@

clean: ## remove the environment and what tools have left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
