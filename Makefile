# Everything runs in .venv, which the first target that needs it builds.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
SITE := import sysconfig; print(sysconfig.get_path('purelib'))
COMPILE := .venv-uv/bin/uv pip compile --quiet --no-python-downloads --extra dev --no-header --no-annotate pyproject.toml

.PHONY: demo real test test-all test-slow test-gpu test-lowest test-newest test-optional families lint lock clean

demo: .venv/installed
	$(BIN)/python tools/demo.py --out runs/demo --overwrite

real: .venv/installed  # the method on a pretrained DINOv2-S, films and photographs; needs Debian's apt-get and a network
	$(BIN)/python tools/real.py --out runs/real

test: .venv/installed  # every promise once, on two cores; more with JOBS=8
	$(BIN)/python -m pytest -m "not slow and not all" -n $(JOBS) --dist worksteal

test-all: .venv/installed  # and at length: twenty kills, every family, every row of the paper, ...
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

test-gpu: .venv/installed  # on a machine with a GPU
	$(BIN)/python -m pytest tests/gpu -n 4

families: .venv/installed  # writes docs/families.md and docs/backbones.md
	$(BIN)/python -m pytest tests/families --write-page --ignore tests/families/test_families_page.py
	$(BIN)/python tools/backbones.py --markdown > docs/backbones.tmp
	mv docs/backbones.tmp docs/backbones.md

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv-uv/bin/uv  # the newest of everything: make lock UPGRADE=--upgrade
	$(COMPILE) --universal --python-version 3.10 $(UPGRADE) --output-file constraints.txt

test-lowest: .venv-lowest/installed  # with the lowest releases that pyproject.toml allows
	.venv-lowest/bin/python -m pytest tests/unit -m "not slow and not all" -n $(JOBS) --dist worksteal

test-newest: .venv-newest/installed  # with the newest; those of today after rm -r .venv-newest
	.venv-newest/bin/python -m pytest tests/unit -m "not slow and not all" -n $(JOBS) --dist worksteal

test-optional: .venv-optional/installed  # with packages that make does not install: loggers, datasets
	.venv-optional/bin/python -m pytest tests/optional

.venv/installed: constraints.txt pyproject.toml
	@$(PYTHON) install.py .venv constraints.txt

.venv-lowest/installed: .venv-uv/bin/uv pyproject.toml
	$(COMPILE) --resolution lowest-direct --python $(PYTHON) --output-file .venv-uv/lowest.txt
	@$(PYTHON) install.py .venv-lowest .venv-uv/lowest.txt

.venv-newest/installed: pyproject.toml
	@$(PYTHON) install.py .venv-newest

.venv-optional/installed: .venv/installed  # a small one on top of .venv
	$(BIN)/python -m venv --clear .venv-optional
	$(BIN)/python -c "$(SITE)" > "$$(.venv-optional/bin/python -c "$(SITE)")/main.pth"
	.venv-optional/bin/python -m pip install --quiet --editable ".[optional]"
	touch $@

.venv-uv/bin/uv:
	$(PYTHON) -m venv --clear .venv-uv
	.venv-uv/bin/python -m pip install -qq uv

clean:
	rm -rf .venv .venv-* runs build *.egg-info
