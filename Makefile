# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make serve [MODEL=llama-8b] [ARGS="--port 8000"]    set up, then serve
#   make test                                           set up, then test
PYTHON ?= python3
VENV ?= .venv
MODEL ?= llama-8b
ARGS ?=
CLIENTS ?=
BUILD := pyproject.toml $(wildcard setup.py) $(wildcard chip/kernels/native/*) $(wildcard interconnect/native/*)
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet

.PHONY: serve test lint clients clean

serve: $(VENV)/.ready-run
	$(VENV)/bin/python -m rack.serve $(MODEL) $(ARGS)

test: $(VENV)/.ready-test
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/.ready-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Real clients, each in an environment of its own (about 4 GB): make clients [CLIENTS="groq node-ai"]
clients: $(VENV)/.ready-test
	$(VENV)/bin/python tests/clients/run.py $(CLIENTS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wanted Python 3.11 or newer, got $$($(PYTHON) --version); try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-run: $(BUILD) | $(VENV)/bin/python
	@echo "installing into $(VENV) (about 500 MB with Ray; once)"
	$(PIP) install -e .
	@touch $@

$(VENV)/.ready-test: $(BUILD) | $(VENV)/bin/python
	@echo "installing into $(VENV), tests' needs included (once)"
	$(PIP) install -e ".[dev]"
	@touch $@ $(VENV)/.ready-run

clean:
	rm -rf $(VENV) .clients build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
