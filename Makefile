# `make demo` and `make test` start from a bare clone: they make .venv, install into it, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint readme docs fuzz clean

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
	$(BIN)/python -m fuzz --seconds 60

clean:
	rm -rf $(VENV) demo site
