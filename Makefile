# Two commands for a newcomer: `make demo` and `make test`. Both make their own virtual environment first.
# `make help` lists them all: what stands behind `##`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Tests start Python hundreds of times: what it compiles is kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test quick lint check docs bench bench-crawl soak wheel clean

help: ## lists the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

# Made anew when what is to be installed changes.
$(VENV)/installed: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all,dev]'
	touch $@

demo: $(VENV)/installed ## downloads, packs and mixes from a small copy of the internet, in a minute
	$(BIN)/datakit demo

test: $(VENV)/installed ## every test, in two processes
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(VENV)/installed ## tests that open no connection, start no process and load no torch: for a change in hand
	$(BIN)/python -m pytest -n 2 --dist worksteal --quick

# `make check test` runs the quick tests once: they are among the others.
check: lint $(if $(filter test,$(MAKECMDGOALS)),,quick) ## lint, types and the quick tests

lint: $(VENV)/installed ## format, lint, types, and whether what is installed fits together
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pip check

docs: $(VENV)/installed ## writes the pages of docs/ that are generated: commands, datasets, recipes
	$(BIN)/python docs/generate.py

bench: $(VENV)/installed ## how long commands take to start, and to read annotations
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/annotations.py

bench-crawl: $(VENV)/installed ## URLs a second, against a server on this machine
	$(BIN)/python benchmarks/crawl.py

soak: $(VENV)/installed ## a crawl of ten minutes, whose memory must not grow
	$(BIN)/python benchmarks/soak.py

wheel: $(VENV)/installed ## dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## removes what these targets made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
