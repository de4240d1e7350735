# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make serve [MODEL=llama-8b] [ARGS="--port 8000"]    set up, then serve
#   make test                                           set up, then test
# For whoever changes the code: make quick, lint, goldens, clients (docs/contributing.md).
PYTHON ?= python3
VENV ?= .venv
GOLDENS ?= .goldens
MODEL ?= llama-8b
ARGS ?=
CLIENTS ?=
BUILD := pyproject.toml $(wildcard setup.py) $(wildcard chip/kernels/native/*) $(wildcard interconnect/native/*)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
WANTED := wanted Python 3.11 or newer with venv
OTHER := or choose another: make PYTHON=python3.12

.PHONY: serve test quick lint goldens clients clean

serve: $(VENV)/.ready-run
	$(VENV)/bin/python -m rack.serve "$(MODEL)" $(ARGS)

test: $(VENV)/.ready-test
	$(VENV)/bin/python -m pytest $(ARGS)

# Without the tests that tests/slow.txt lists, or that are marked slow or ray
quick: $(VENV)/.ready-test
	$(VENV)/bin/python -m pytest --quick $(ARGS)

lint: $(VENV)/.ready-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Known answers anew: what transformers computes, at pinned versions in an environment of its own
# (about 1 GB), and what this code does. Where nothing changed, git sees no difference.
goldens: $(VENV)/.ready-test $(GOLDENS)/.ready
	$(GOLDENS)/bin/python tests/goldens/make_goldens.py
	$(GOLDENS)/bin/python tests/goldens/make_chats.py
	$(VENV)/bin/python tests/test_goldens_house.py
	@git --no-pager diff --stat -- tests/goldens

# Real clients, each in an environment of its own (about 4 GB): make clients [CLIENTS="groq node-ai"]
clients: $(VENV)/.ready-test
	$(VENV)/bin/python tests/clients/run.py $(CLIENTS)

# A Python that went away with its venv's link, or a newer one behind it, makes it and installs again.
$(VENV)/bin/python:
	@test -w . || { echo "$(CURDIR) cannot be written: copy it to a folder that can"; exit 1; }
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "$(WANTED), got none: $(PYTHON) is not found; install it $(OTHER)"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(WANTED), got $$("$(PYTHON)" --version); install it $(OTHER)"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(WANTED), got one without: apt install python3-venv (Debian, Ubuntu) $(OTHER)"; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# What was killed half-way is done again: the stamps are the last thing made.
define install
	@$(VENV)/bin/python -c 'import pip' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP) install -e $(1) || { echo "pip could not install lpu-rack: the reason is above; without a network, \
	  give it packages: PIP_NO_INDEX=1 PIP_FIND_LINKS=folder make"; exit 1; }
endef

$(VENV)/.ready-run: $(BUILD) $(VENV)/bin/python
	@echo "installing into $(VENV) (about 500 MB with Ray; once)"
	$(call install,.)
	@touch $@

$(VENV)/.ready-test: $(BUILD) $(VENV)/bin/python
	@echo "installing into $(VENV), tests' needs included (once)"
	$(call install,".[dev]")
	@touch $@ $(VENV)/.ready-run

$(GOLDENS)/.ready: tests/goldens/requirements.txt $(VENV)/bin/python
	@echo "installing torch and transformers into $(GOLDENS) (once)"
	@"$(PYTHON)" -m venv --clear $(GOLDENS)
	@$(GOLDENS)/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@

clean:
	rm -rf $(VENV) $(GOLDENS) .clients build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
