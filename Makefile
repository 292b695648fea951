# Everything a contributor or CI runs. Each target sets itself up: the first call in a fresh clone builds .venv.
PYTHON ?= python3
ARGS   ?=

BIN   := .venv/bin
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
PIP_INSTALL := -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off
CHECKED := actors common deploy learner reward_servers worlds benchmarks tests

.DEFAULT_GOAL := help
.PHONY: help setup train test check prometheus bench bench-env clean

help: ## print the targets
	@echo "usage: make TARGET [ARGS='more arguments for the command'] [PYTHON=python3.11]"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-10s %s\n", $$1, $$2 }'

setup: .venv/.installed ## build .venv with the tested versions (every target below does it when needed)

train: setup ## train the first example, shapes_joint; results in runs/
	$(BIN)/drover train shapes_joint $(ARGS)

test: setup prometheus ## every test, in two processes side by side
	$(BIN)/python -m tests $(ARGS)

check: setup ## lint, types and the fast tests: before every commit
	$(BIN)/ruff check $(wildcard $(CHECKED))
	$(BIN)/ruff format --check $(wildcard $(CHECKED))
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow and not service" $(ARGS)

prometheus: ## install Debian's Prometheus where that can be done: the tests of monitoring are skipped without it
	@command -v prometheus >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { \
	  echo "drover: installing prometheus"; apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends prometheus; } >&2; } \
	  || echo "drover: there is no prometheus here; the tests that ask one are skipped" >&2

bench: setup bench-env ## measure everything but joint and chaos, over an hour on a quiet machine
	$(BIN)/python -m benchmarks.wire $(ARGS)
	$(BIN)/python -m benchmarks.weights $(ARGS)
	$(BIN)/python -m benchmarks.efficiency $(ARGS)
	$(BIN)/python -m benchmarks.reward_pool $(ARGS)
	$(BIN)/python -m benchmarks.checkpoint $(ARGS)
	$(BIN)/python -m benchmarks.evaluation $(ARGS)
	$(BIN)/python -m benchmarks.plan $(ARGS)
	$(BIN)/python -m benchmarks.fleet $(ARGS)
	$(BIN)/python -m benchmarks.peers

bench-env: .venv-trl/.installed ## build .venv-trl, the environment of the peer

clean: ## remove caches and builds; environments (.venv*) and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	$(call new_venv,.venv)
	@echo "drover: installing drover and its development tools (versions of constraints.txt)"
	@PYTHONWARNINGS=ignore $(BIN)/python $(PIP_INSTALL) --editable '.[dev]' --constraint constraints.txt
	@touch $@
	@echo "drover: .venv is ready"

.venv-trl/.installed: benchmarks/peers/requirements-trl.txt
	$(call new_venv,.venv-trl)
	@echo "drover: installing $<"
	@.venv-trl/bin/python $(PIP_INSTALL) --requirement $<
	@touch $@
	@echo "drover: .venv-trl is ready"

# A virtual environment with torch alone, so that the CPU build is in place before anything else asks for torch: on
# Linux the default build pulls gigabytes of CUDA libraries. A machine with an NVIDIA GPU gets that default build.
# --no-deps: only torch itself is looked up in the extra index; its requirements come with the rest. --retries 1: where
# that index cannot be reached, a build from the ordinary sources will do.
define new_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "drover needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." \
	       "Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(1)/bin/python || { echo "drover: creating $(1) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(1); }
	@$(1)/bin/python $(PIP_INSTALL) --upgrade pip
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  echo "drover: installing $(TORCH) for the GPU of this machine"; \
	  $(1)/bin/python $(PIP_INSTALL) '$(TORCH)'; \
	else \
	  echo "drover: installing $(TORCH) for CPU"; \
	  $(1)/bin/python $(PIP_INSTALL) '$(TORCH)' --no-deps --retries 1; \
	fi
endef
