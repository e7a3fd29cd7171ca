# Everything runs in .venv, which the first target that needs it builds.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2

.PHONY: demo test test-slow families lint clean

demo: .venv/installed
	$(BIN)/python tools/demo.py --out runs/demo --overwrite

test: .venv/installed  # on two cores; more with JOBS=8
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

families: .venv/installed  # the README's table and docs/backbones.md
	$(BIN)/python -m pytest tests/families --readme --ignore tests/families/test_readme.py
	$(BIN)/python tools/backbones.py --markdown > docs/backbones.tmp
	mv docs/backbones.tmp docs/backbones.md

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
