# Everything a newcomer needs: make demo. Before each commit: make check. Before each release: make
# test. Everything a maintainer needs: the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
WORK   ?= build/weights
OLDEST ?= build/oldest

# One worker for each core, if there are 4 GB of memory for each.
WORKERS ?= 2
PYTEST   = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: demo check test test-oldest test-studio dist api lint weights judge figures clean

demo: $(VENV)/installed
	$(BIN)/clipag generate "a red apple" --out apple.png

# Lint, types and the fast tests: under 2 minutes on 2 cores.
check: lint
	$(PYTEST) -m "not slow"

# The fuzzer measures the time and memory of its process, so it has processes of its own.
test: $(VENV)/installed-test
	$(PYTEST) --ignore tests/test_fuzz.py
	$(PYTEST) tests/test_fuzz.py

# The fast tests with the oldest torch that pyproject.toml allows, in an environment of its own.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

# The wheel and the source archive, in dist.
dist: $(VENV)/installed-dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# The studio's page, in Chromium, which must be on the machine.
test-studio: $(VENV)/installed-test $(VENV)/installed-test-studio
	$(BIN)/python -m pytest tests/test_studio.py tests/test_studio_page.py

# The API reference, as HTML in build/api.
api: $(VENV)/installed-api
	$(BIN)/python docs/api.py build/api

# mypy reads the types of the libraries that the tests use.
lint: $(VENV)/installed-test $(VENV)/installed-lint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Corpus, text tower, both image towers, starting images: one command, resumes after a kill.
weights: $(VENV)/installed-weights
	$(BIN)/python -m clipag_plugins.finetune.embedded --work $(WORK)

judge: $(VENV)/installed-weights
	$(BIN)/python -m benchmarks.fit_judge --work $(WORK)

# The contact sheet. Under the other figures of README stand their commands.
figures: $(VENV)/installed
	$(BIN)/python -m benchmarks.contact_sheet

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

# torchattacks, which PGD is compared with, asks for the requests of 2020 and does not need them.
$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps torchattacks==3.5.1
	touch $@

$(OLDEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet torch==2.6.0 torchvision==0.21.0
	$(OLDEST)/bin/pip install --quiet --editable ".[test]"
	$(OLDEST)/bin/pip install --quiet --no-deps torchattacks==3.5.1
	touch $@

$(VENV)/installed-%: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch $@

# Not build/weights: that took hours.
clean:
	rm -rf $(VENV) apple.png
