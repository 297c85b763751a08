# make demo, make test: each installs what is missing first. Another Python: make PYTHON=python3.12 test
PYTHON ?= python3
OUT ?= runs/demo
ARGS ?=
BIN := .venv/bin

.PHONY: help install demo test stress lint types tests clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     train and evaluate a policy from nothing: $(OUT)/report.html"
	@echo "make test     lint, types and tests"
	@echo "make stress   faults: clients, networks, operators, datasets; about two hours, resumable, to docs/stress.md"
	@echo "make lint     ruff; also: make types (mypy), make tests ARGS=\"-k tokens\" (pytest)"
	@echo "make install  only install, into .venv"
	@echo "make clean    remove .venv and caches; runs/ stays"

install: .venv/ready

# The stamps make a second run install nothing: .venv/installed is as old as the last pip, .venv/ready as the last
# time the doctor found that everything works.
.venv/ready: .venv/installed
	@$(BIN)/actwam doctor --fix
	@touch $@

.venv/installed: pyproject.toml constraints.txt packages/*/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ActWAM needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing ActWAM and its pinned requirements into .venv: some minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]" \
		-e packages/actwam-client -e packages/actwam-runner
	@touch $@

demo: install
	@$(BIN)/actwam demo --out $(OUT) $(ARGS)

test: lint types tests

lint: install
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && echo "lint: passed"

types: install
	@$(BIN)/mypy

tests: install
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

stress: install
	@$(BIN)/python -m benchmarks.stress benchmarks/results/stress.json --table docs/stress.md $(ARGS)

clean:
	rm -rf .venv build dist src/*.egg-info packages/*/src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests packages -name __pycache__ -type d -prune -exec rm -rf {} +
