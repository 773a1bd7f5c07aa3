# `make run` and `make test` need nothing but Python 3.11, make and git.
PYTHON ?= python3.11
BIN := .venv/bin

# The programs of a virtual environment hold its path: after a move they don't start, and those of a copy run the
# original's code. One that was made elsewhere, by its own account, is made anew.
MOVED := $(shell made=$$(grep '^command = ' .venv/pyvenv.cfg 2>/dev/null) && \
	case "$$made" in (*" $$(cd .venv && pwd -P)") ;; (*) echo moved ;; esac)

.PHONY: run test lint lock audit sbom bench clean $(if $(MOVED),.venv/.ready)

run: .venv/.ready
	$(BIN)/trueframe run

# SLOW=1 adds the tests that take minutes: whole set-ups, and what happens when machines fail.
test: .venv/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile $(if $(SLOW),--slow)

lint: .venv/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.ready
	$(BIN)/python -m benchmarks

COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url
IMAGE := --extra foundation --extra shared --extra ui --extra kubernetes -c requirements.lock

lock: .venv/.ready
	$(COMPILE) --extra dev pyproject.toml -o requirements.lock
	$(COMPILE) $(IMAGE) pyproject.toml -o deploy/requirements.lock
	$(COMPILE) $(IMAGE) --extra gpu pyproject.toml -o deploy/requirements-gpu.lock
	$(COMPILE) $(IMAGE) --extra jax-gpu pyproject.toml -o deploy/requirements-jax.lock

# What is installed here, and what the images install.
LOCKS := requirements.lock $(wildcard deploy/requirements*.lock)

audit: .venv/.ready
	$(BIN)/pip-audit $(LOCKS:%=--requirement %) --require-hashes --disable-pip --strict

# Beside each lock: sbom.json, deploy/sbom.json, deploy/sbom-gpu.json, deploy/sbom-jax.json.
sbom: .venv/.ready
	set -e; $(foreach lock,$(LOCKS),$(BIN)/cyclonedx-py requirements $(lock) -o $(subst requirements,sbom,$(lock:.lock=.json));)

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv$(if $(MOVED), --clear) .venv
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

clean:
	rm -rf .venv artifacts mlruns mlflow.db
