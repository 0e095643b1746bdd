# Everything a developer or a newcomer runs. `make` alone tells what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
export PYTHONUNBUFFERED := 1

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.installed: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --requirement requirements/dev.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	touch $@

setup: .venv/.installed ## Install what development needs into .venv

lint: setup ## Style, types, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup ## Tests without a cluster
	$(BIN)/python -m pytest tests/unit

test: setup lint ## All tests: unit, faults of local processes, a real API server, the chart, jobs on real nodes
	$(BIN)/python -m pytest tests/unit tests/faults tests/cluster tests/e2e -m "not teardown"

faults: setup ## Many seeded schedules of faults: make faults ARGS="--seeds 0-499 --side-by-side 2"
	$(BIN)/python -m tests.faults.campaign $(ARGS)

storage-faults: setup ## Storage that fails at each call with each error: make storage-faults ARGS="--schedules 200"
	$(BIN)/python -m tests.faults.storage $(ARGS)

hostile: setup ## Seeded fuzz of every parser and listener, a minute each: make hostile ARGS="--target http --seconds 10"
	$(BIN)/python -m tests.faults.hostile $(ARGS)

.venv/.bench: .venv/.installed requirements/bench.txt
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --requirement requirements/bench.txt
	touch $@

bench: .venv/.bench ## One benchmark beside its peer: make bench NAME=kill
	@test -n "$(NAME)" || { echo "say which: make bench NAME=one of $$(cd bench; ls *.py | xargs grep -l emit\( | sed s/.py// | grep -v report | xargs)"; exit 2; }
	$(BIN)/python -m bench.$(NAME) $(ARGS)

demo: setup ## From nothing to a trained model (CLUSTER=local, current or kind)
	$(BIN)/python -m examples.demo

down: setup ## Remove the local cluster and all that it made
	$(BIN)/python -m localcluster down

wheels: setup ## Build what is published on the package index into dist/
	rm -rf dist
	$(BIN)/uv build --quiet --wheel --out-dir dist

lock: setup ## Pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile -q --no-header --no-emit-index-url --generate-hashes --upgrade --group dev --extra operator --extra trainer pyproject.toml -o requirements/dev.txt
	$(BIN)/uv pip compile -q --no-header --no-emit-index-url --generate-hashes --group bench -c requirements/dev.txt pyproject.toml -o requirements/bench.txt
	for extra in operator trainer; do $(BIN)/uv pip compile -q --no-header --no-emit-index-url --generate-hashes --extra $$extra -c requirements/dev.txt pyproject.toml -o requirements/$$extra.txt; done

.PHONY: help setup lint unit test faults storage-faults hostile bench demo down wheels lock
