# Two commands for a newcomer: `make demo` and `make test`. Both make their own virtual environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test check bench bench-crawl soak wheel clean

# Made anew when what is to be installed changes.
$(VENV)/installed: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all,dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/datakit demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pip check

bench: $(VENV)/installed
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/annotations.py

bench-crawl: $(VENV)/installed
	$(BIN)/python benchmarks/crawl.py

soak: $(VENV)/installed
	$(BIN)/python benchmarks/soak.py

wheel: $(VENV)/installed
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
