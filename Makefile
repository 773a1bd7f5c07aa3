# `make run` and `make test` need nothing but Python 3.11, make and git.
PYTHON ?= python3.11
BIN := .venv/bin

# The programs of a virtual environment hold its path: after a move they don't start, and those of a copy run the
# original's code. One that was made elsewhere, by its own account, is made anew.
MOVED := $(shell made=$$(grep '^command = ' .venv/pyvenv.cfg 2>/dev/null) && \
	case "$$made" in (*" $$(cd .venv && pwd -P)") ;; (*) echo moved ;; esac)

.PHONY: run test lint lock audit sbom bench clean $(if $(MOVED),.venv/bin/uv)

run: .venv/.ready
	$(BIN)/trueframe run

# SLOW=1 adds the tests that take minutes: whole set-ups, and what happens when machines fail.
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(if $(SLOW),--slow)

lint: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python -m benchmarks

# One lock for all levels and images: what a level installs has the versions and the hashes that stand in it.
lock: .venv/bin/uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --all-extras \
		pyproject.toml -o requirements.lock

audit: .venv/.dev
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict

sbom: .venv/.dev
	$(BIN)/cyclonedx-py requirements requirements.lock -o sbom.json

.venv/bin/uv:
	$(PYTHON) -m venv$(if $(MOVED), --clear) .venv
	$(BIN)/python -m pip install -q uv

# Three levels: .base is what serves, .ready what trains too, .dev what tests, on top of it.
.venv/.ready: EXTRA = --extra train
.venv/.dev: EXTRA = --extra dev
.venv/.dev: .venv/.ready
.venv/.base .venv/.ready .venv/.dev: .venv/bin/uv requirements.lock pyproject.toml
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -c requirements.lock -r pyproject.toml $(EXTRA)
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

clean:
	rm -rf .venv artifacts mlruns mlflow.db
