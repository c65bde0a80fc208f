# make demo: the three jobs on real data, and a page that shows them; run again, it resumes, or shows what is finished.
# make test: the default suite. Both set up .venv first, once. OUT and SEED are the demo's folder and seed.
# make figures: the two figures of the README, as the demo draws them.
# make docs: the documentation as a site in out/site; its search needs a server.
# PYTHON makes .venv: the first of these versions that runs (a shim may not) and can make environments.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14; do \
	$$name -c 'import ensurepip, venv' 2>/dev/null && echo $$name && break; done)
OUT ?= out/demo
SEED ?= 0
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo figures test test-slow lint docs setup
.DEFAULT_GOAL := test

demo: setup
	@$(BIN)/python -m scripts.demo "out='$(OUT)'" seed=$(SEED)

figures: demo
	cp '$(OUT)'/figures/prompts.svg '$(OUT)'/figures/optimizers.svg docs/

test: setup
	$(BIN)/python -m pytest -q

test-slow: setup
	$(BIN)/pip install -q -c constraints.txt -e '.[ray,s3,adapters,files,hub,search,trackers]'
	$(BIN)/python -m pytest -q -m ''

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/zensical build --strict --clean
	@echo "open out/site/index.html, or with its search: python -m http.server -d out/site"

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
		{ echo "no python3.11 to python3.14 with venv here; install one, or name it: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,s3]'
	touch $@
