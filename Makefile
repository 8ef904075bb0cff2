# One environment, .venv, in two steps: what a user needs, and on top of it what development needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
EXTRAS := series,tabular,geo,medical,hf,search,serve,onnx,web,docs,dev

.PHONY: install demo test lint bench scale docs

install: .venv/.everything

demo: .venv/.core
	$(BIN)/flambeau run prototype_reasoning

test: .venv/.everything lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.core
	$(BIN)/flambeau bench

# Every paper's experiment over three seeds; writes results/. Takes about six minutes a paper on two cores.
scale: .venv/.everything
	set -e; for key in $$($(BIN)/python -m flambeau.papers); do $(BIN)/flambeau record $$key; done

docs: .venv/.everything
	$(BIN)/mkdocs build --strict

.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flambeau needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "The venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PIP) $(TORCH)
	$(PIP) -e .
	touch $@

.venv/.everything: .venv/.core
	$(PIP) -e '.[$(EXTRAS)]'
	# CUDA builds of torch bring the triton they need; for CPU builds this one runs the kernels in its interpreter.
	$(BIN)/python -m pip show --quiet triton 2>/dev/null || $(PIP) triton==3.6.0
	touch $@
