# `make demo` and `make test` do all set-up themselves: a virtual environment in .venv, then the job.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: help demo test lint fault bench docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP) ## the whole path on a made-up scroll, into ./embedcache-demo
	$(BIN)/embedcache demo

# One process more than cores, as many tests wait for processes that they kill.
WORKERS = $(shell $(PYTHON) -c "import os; print(min(8, (os.cpu_count() or 1) + 1))")

test: $(STAMP) ## the tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(STAMP) ## ruff (lint and format), mypy --strict, the floors of the house, generated docs up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

fault: $(STAMP) ## faults injected into the real commands, and docs/faults.md of them (ROUNDS=100 by default; ten minutes)
	$(BIN)/python -m tests.faults --write --rounds $(or $(ROUNDS),100)

bench: $(STAMP) ## this machine's figures beside the stock way (stage one: 40 minutes on two cores)
	PYTHON=$(BIN)/python benchmarks/stage_one.sh
	$(BIN)/embedcache bench read
	$(BIN)/embedcache bench train --model vit_tiny

docs: $(STAMP) ## write what is generated (docs/cli.md, the table of docs/volumes.md)
	$(BIN)/python docs/generate.py

clean: ## remove the environment and the demo
	rm -rf $(VENV) embedcache-demo
