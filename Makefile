# `make help` lists the targets. `make demo` and `make test` need Python 3.11 or 3.12 and make, nothing
# else: both create .venv first, from the versions in constraints.txt.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# The first Python on the PATH that this project runs on.
PYTHON ?= $(shell for p in python3.11 python3 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := pipelines,dev,docs
# The kernels are also interpreted by the Triton of torch 2.11, installed beside the environment.
OTHER_TRITON := $(VENV)/triton-3.6.0
# A GPU host needs no .venv: any Python 3.11 or 3.12 with torch, triton, numpy and pytest.
GPU_PYTHON ?= python3

.PHONY: help setup fmt lint types test test-slow test-gpu bench-gpu demo demo-quick experiments docs figures check audit lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

setup: $(INSTALLED) ## Create .venv and install everything that is pinned

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 on the PATH; install one, or: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=26,<27"  # an old one takes minutes to resolve
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

fmt: setup ## Format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lint: setup ## Check style and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup ## Check types, strictly
	$(BIN)/mypy

$(OTHER_TRITON): $(INSTALLED)
	rm -rf $@ $@.part
	$(BIN)/python -m pip install --quiet --no-deps --target $@.part triton==3.6.0
	mv $@.part $@

# One thread for each of two processes: two for each would fight for the cores.
test: setup $(OTHER_TRITON) ## Run the default tests: no GPU, nothing slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup ## Run the tests that kill processes and start clusters
	$(BIN)/python -m pytest -m slow

test-gpu: ## Run the tests that need a CUDA device, with GPU_PYTHON (python3)
	$(GPU_PYTHON) -m pytest -p no:cacheprovider -c tests/gpu/self_contained.ini tests/gpu

bench-gpu: ## Measure the kernels on a CUDA device, with GPU_PYTHON (python3)
	$(GPU_PYTHON) -m benchmarks.fused_kernels

demo: setup ## Videos to a registered model and a leak report of four arms, on a CPU
	$(BIN)/python -m pipelines.demo_data --out build/demo/videos
	$(BIN)/cil sweep configs/demo_arms.yaml --keep timenoise
	$(BIN)/cil leak --sweep configs/demo_arms.yaml --out build/demo/leak

demo-quick: setup ## The same path with two arms, few videos and few steps; its numbers say nothing
	$(BIN)/python -m pipelines.demo_data --out build/demo-quick/videos --num-videos 16
	$(BIN)/cil sweep configs/demo_quick.yaml --keep timenoise
	$(BIN)/cil leak --sweep configs/demo_quick.yaml --out build/demo-quick/leak

experiments: setup ## Repeat the experiments of docs/experiments.md: hours on one CPU core
	$(BIN)/python -m pipelines.experiments $(addprefix configs/experiments/,$(addsuffix .yaml,stillness start_time schedule image_token data_size)) --docs docs

docs: setup ## Build the documentation into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: demo ## Renew the pictures of the docs and of README from the code and the demo
	$(BIN)/python docs/figures.py
	install -D -m 644 build/demo/run/sample/sample.gif docs/images/demo.gif

check: lint types docs test ## Everything that .ci/run checks

audit: ## Look up the pinned versions among the known weaknesses; needs the network
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet 'pip-audit>=2.9,<3'
	build/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

lock: ## Resolve constraints.txt anew from pyproject.toml
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -e '.[$(EXTRAS)]'
	sed -n '/^#/p' constraints.txt > build/lock/constraints.txt
	build/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+[a-z0-9.]*$$//' >> build/lock/constraints.txt
	cp build/lock/constraints.txt constraints.txt && rm -rf build/lock

clean: ## Delete build/, site/ and caches; keeps .venv
	rm -rf build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find cil kernels pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +
