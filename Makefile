# The front door. `make` alone prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STATE ?= $(CURDIR)/.state
FRAMES ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run doctor test test-slow lint handlers check-handlers faults bench bench-fleet clean

help: ## This list
	@echo "make TARGET; the first use of a target installs what it needs (into $(VENV), and Debian packages by apt)"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 \2/p' $(MAKEFILE_LIST) | while read -r name text; do printf '  %-16s %s\n' "$$name" "$$text"; done

run: $(VENV)/.run .system-run ## Run the whole appliance on the synthetic conveyor (FRAMES=300 ends it; ARGS="--help" shows more)
	$(BIN)/appliance run --state $(STATE) $(if $(FRAMES),--frames $(FRAMES)) $(ARGS)

doctor: $(VENV)/.run ## Say what this machine has and lacks
	$(BIN)/appliance doctor --state $(STATE) $(ARGS)

test: $(VENV)/.dev .system-run .asc/node_modules ## The everyday tests
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev .system-run .asc/node_modules ## The tests that take longer
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.dev ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

handlers: $(VENV)/.dev ## Rebuild the example handlers' WebAssembly (the Rust one needs Debian's rustc and libstd-rust-dev-wasm32)
	$(BIN)/python handlers/build.py $(ARGS)

check-handlers: $(VENV)/.dev ## Show that the committed modules are what the sources give
	$(BIN)/python handlers/build.py --check

faults: $(VENV)/.dev .system-run ## Every fault a handler can have, beside a good neighbour, and 1000 power cuts: what happened, how soon it was over
	PYTHONPATH=tests/sandbox:tests/deploy $(BIN)/python tests/faults/run.py $(ARGS)

bench: $(VENV)/.dev .system-run ## The benchmarks of docs/performance.md, as ratios measured side by side
	PYTHONPATH=tests/mqtt $(BIN)/python tests/bench/run.py $(ARGS)

bench-fleet: $(VENV)/.dev .system-run ## A bundle over MQTT against one message: time, bytes on the wire, memory
	PYTHONPATH=.:tests/deploy:tests/fleet:tests/mqtt $(BIN)/python tests/bench/bench_fleet.py $(ARGS)

clean: ## Remove what make has made (the virtual environment, caches, the state directory)
	rm -rf $(VENV) .asc .state .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build *.egg-info

# --- set-up --------------------------------------------------------------------------------------------------

# pywasm3 comes as source: it needs a C compiler and Python's headers, once. Its C is older than gcc 14, which
# (Debian 13) made of one of its warnings an error.
$(VENV)/.run: export CFLAGS += -Wno-error=incompatible-pointer-types
$(VENV)/.run: setup.cfg pyproject.toml | .system-build
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) has no venv: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,tflite]'
	@touch $@

# For the tests of handlers in AssemblyScript, which are skipped without it: nothing else needs npm.
ASC = $(shell sed -n 's/.*"assemblyscript": "\(.*\)".*/\1/p' appliance/author/templates/assemblyscript/package.json)
.asc/node_modules: appliance/author/templates/assemblyscript/package.json
	@if command -v npm >/dev/null; then npm install --prefix .asc --no-audit --no-fund --ignore-scripts --silent assemblyscript@$(ASC); fi
	@mkdir -p $@ && touch $@

.PHONY: .system-run .system-build
.system-run:
	@PATH="$$PATH:/usr/sbin"; command -v mosquitto >/dev/null && command -v mosquitto_sub >/dev/null || $(call apt,mosquitto mosquitto-clients)

.system-build:
	@test -e $(VENV)/.run || { command -v cc >/dev/null && $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; } || $(call apt,gcc libc6-dev python3-dev)

# $(call apt,PACKAGES): install with apt, as root or by sudo; where neither may, say what to install.
define apt
{ command -v apt-get >/dev/null || { echo "make: please install: $(1)" >&2; exit 1; }; \
  if [ "$$(id -u)" = 0 ]; then as=; elif sudo -n true 2>/dev/null || [ -t 0 ]; then as=sudo; \
  else echo "make: please install, as root: apt-get install $(1)" >&2; exit 1; fi; \
  echo "make: installing $(1) with apt"; \
  $$as env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1) >/dev/null' \
    || { echo "make: apt-get could not install $(1); please install by hand" >&2; exit 1; }; }
endef
