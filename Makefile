# `make demo` trains the default job; `make test` runs the whole suite. Both set up .venv by themselves.
# The newest Python that is tested: its jax is newer and faster. Make it another with PYTHON=… (and another VENV=…).
ifndef PYTHON
PYTHON := $(shell tools/find_python.sh)
endif
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-engines drills smoke lint bench clean

demo: $(VENV)/.installed
	$(BIN)/blobjax train laptop

# Two workers: starting processes and tracing keep one core busy, not two. A file stays with one worker, for its fixtures.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The engines of launch/ for real: Slurm, Open MPI, Ray, SkyPilot, pages in Chromium, and the compilers of `blobjax plan`. Installs them,
# which takes some minutes; without them `make test` skips these tests, and says so.
test-engines: $(VENV)/.installed-test $(VENV)-plan/.installed
	tests/engines/install.sh $(BIN)/python
	$(BIN)/python -m pytest tests/engines tests/report
	$(VENV)-plan/bin/python -m pytest tests/plan

# Real faults done to real runs, all of them: 14 minutes on 2 cores. Some need root (a tmpfs), gcc or Linux, and say so.
drills: $(VENV)/.installed-test
	$(BIN)/python tools/fault_drill.py

# The subset that also runs on the oldest Python we support, whose jax is older: make smoke PYTHON=python3.11 VENV=.venv-3.11
smoke: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m smoke

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python tools/benchmark.py laptop

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

# An environment of its own: beside the CUDA plugin and without a GPU, every jax that is told no platform writes a traceback to stderr.
$(VENV)-plan/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-plan
	$(VENV)-plan/bin/python -m pip install --quiet -e '.[test,plan-tpu,plan-gpu]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-plan .jax_cache .mypy_cache .ruff_cache .pytest_cache build dist
