# Everything runs in .venv, made from constraints.txt; PYTHON names the interpreter it is made with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-browser test-cluster soak calibrate lint bench examples docs docs-pages dist clean

quickstart: $(VENV)/installed
	$(BIN)/gradscope study analyses/quickstart.toml --jobs 2

# One thread a process: small networks gain nothing from two, and two processes halve the time.
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# The pages in Chromium, the quickstart's too. Chromium is installed where the PATH has none; where that fails, the tests
# are skipped.
test-browser: quickstart $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	-command -v chromium || command -v google-chrome || \
		{ SUDO=$$(command -v sudo); $$SUDO apt-get update && $$SUDO apt-get install --yes chromium; }
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser tests/reporting

# A Ray cluster of two nodes on this machine, whose parts are killed: minutes, and best on an idle machine.
test-cluster: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cluster]'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/study/test_cluster.py

# Tests of more seeds and models, then hostile inputs and kills for SECONDS, from a new seed or SEED; what fails is kept
# in soak/.
SECONDS ?= 600
soak: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m slow
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# The audit on classifiers of CIFAR-10 whose truth is known: an hour of one core; DATA names the folder or file.
calibrate: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.calibration $(if $(DATA),--data-root $(DATA))

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.benchmarks

# The notebooks, executed anew in place.
examples: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebook]'
	OMP_NUM_THREADS=1 $(BIN)/python examples/execute.py examples/*.ipynb

# The site, in docs/_build: Sphinx in an environment of its own, for it needs a newer requests than torchattacks allows.
docs: docs-pages .venv-docs/installed
	.venv-docs/bin/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build

# The pages that are made from the code.
docs-pages: $(VENV)/installed
	$(BIN)/python docs/generate.py

.venv-docs/installed: docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --requirement docs/requirements.txt
	touch $@

# The wheel and the source archive in dist/; the wheel is installed into an empty environment and used there.
dist: $(VENV)/installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m tests.distribution dist/*.whl

clean:
	rm -rf $(VENV) .venv-docs docs/_build

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradscope needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,timm]'
	touch $@
