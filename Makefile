# make demo: build and inspect a zoo. make test: the default suite. Both set up .venv first, once.
PYTHON ?= python3.11
OUT ?= out/demo
SEED ?= 0
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint setup
.DEFAULT_GOAL := test

demo: setup
	$(BIN)/python -m scripts.build_zoo out="$(OUT)/zoo" seed=$(SEED)
	$(BIN)/python -m scripts.inspect_zoo zoo="$(OUT)/zoo" verify=true

test: setup
	$(BIN)/python -m pytest -q

test-slow: setup
	$(BIN)/pip install -q -c constraints.txt -e '.[ray,s3]'
	$(BIN)/python -m pytest -q -m ''

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,s3]'
	touch $@
