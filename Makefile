# schnell: `make serve` to use it, `make test` to check it. `TORCH_INDEX=URL` adds a package index (for a CPU build of torch).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development

.PHONY: setup serve test check soak screenshots mini mini-evaluate clean help

help: ## show these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(DEVELOPMENT) ## .venv with everything, also for the tests

serve: $(RUNTIME) ## what runs schnell, then the server itself
	$(BIN)/schnell serve

test: setup check ## set up, then check everything

check: $(DEVELOPMENT) ## format, lint, types, layers, dependencies, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/mypy
	$(BIN)/pytest

soak: $(DEVELOPMENT) ## the full counts: takes hours
	SCHNELL_SOAK=1 $(BIN)/pytest --timeout 7200

screenshots: $(DEVELOPMENT) ## the pictures of the README and the documentation
	$(BIN)/python scripts/screenshots.py

mini: $(DEVELOPMENT) ## make the embedded model from nothing, as in `make mini MINI="--minutes 240"`
	PYTHONPATH=recipes $(BIN)/python -m schnell_mini model $(MINI)

mini-evaluate: $(DEVELOPMENT) ## the embedded model's figures, as in `make mini-evaluate MINI="--limit 10"`
	PYTHONPATH=recipes $(BIN)/python -m schnell_mini model --evaluate $(MINI)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "schnell needs Python 3.11 or newer: apt-get install python3 python3-venv (or PYTHON=/path/to/python make ...)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "this Python has no venv: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUNTIME): pyproject.toml | $(VENV)/.python
	@echo "installing schnell and its libraries into $(VENV) (a few minutes the first time)" >&2
	$(PIP) install --editable .
	@touch $@

$(DEVELOPMENT): $(RUNTIME) scripts/dev_requirements.py scripts/install_browser.sh
	$(BIN)/python scripts/dev_requirements.py > $(VENV)/dev-requirements.txt
	$(PIP) install --requirement $(VENV)/dev-requirements.txt
	sh scripts/install_browser.sh $(BIN)
	@touch $@

clean: ## remove the environment and what tools have left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
