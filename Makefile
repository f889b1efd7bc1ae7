# `make demo` and `make test` start from a bare clone: they make .venv, install into it, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint readme docs fuzz torture bench clean

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo.sh

test: lint
	$(BIN)/python -m pytest -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("espctl needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

readme: $(READY)
	$(BIN)/python scripts/fill_readme.py

docs: $(READY)
	$(BIN)/python scripts/make_docs.py
	$(BIN)/mkdocs build --strict

# A minute for each parser; atheris is only installed for this.
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris
	$(BIN)/python -m fuzz --seconds 60 $(ARGS)

# Kills the program 500 times and breaks its disk 200 times; ARGS='--jobs 2 --seed 1 --output results' and the like.
# Then eight processes give 2,000 commands to one project; TOGETHER='--seed 1 --output results'.
torture: $(READY)
	$(BIN)/python -m tests.torture $(ARGS)
	$(BIN)/python -m tests.torture.together --writers 8 --operations 2000 $(TOGETHER)

# Us against the straight alternatives, less than half an hour on two cores that nobody else uses; then README.md is filled.
# ARGS='step --size cuda' and the like. With a GPU, bench/gpu.sh does this and all else that wants one.
bench: $(READY)
	$(BIN)/python -m bench $(or $(ARGS),--size cpu) --output results
	$(BIN)/python scripts/fill_readme.py

clean:
	rm -rf $(VENV) demo site
