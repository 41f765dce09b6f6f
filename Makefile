# Needs Python 3.11 or newer and make; no root, no Docker, no GPU. `make help` lists the commands.

PYTHON ?= python3
# Another version (2.10 or newer) or build: make demo TORCH=torch==2.12.0
TORCH ?= torch==2.13.0
# Where the small CPU build lies; with TORCH_INDEX= the platform's default build is taken (CUDA on Linux).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# What `make demo` streams: digits, mnist (from LEVIT_DATA) or the path of an .npz
DATA ?= digits

VENV := .venv
BIN := $(VENV)/bin
AUDIT := .venv-audit
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH_STAMP := $(VENV)/.torch-$(shell printf '%s' '$(TORCH) $(TORCH_INDEX)' | cksum | cut -d ' ' -f 1)
SLOW := crash or soak or browser
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo bench test test-fast soak lint secrets pin-images sbom audit generate fuzz conformance clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.installed ## Create .venv with everything in it

demo: install ## Stream real data class by class into a fresh service; DATA=mnist for the real thing
	$(BIN)/levit demo --data $(DATA)

test: lint ## The whole gate: lint, types, contracts, all tests
	$(PYTEST) -n 2 -m "not ($(SLOW))" --cov --cov-report=
	$(PYTEST) -m "$(SLOW)" --cov --cov-append --cov-report=term:skip-covered --cov-fail-under=95
	$(BIN)/levit bench --suite ci --jobs 2 --again

bench: install ## Every number of README and bench/RESULTS.md; hours, goes on where it was stopped
	$(BIN)/levit bench --suite headline
	$(BIN)/levit bench --suite contributions

test-fast: lint ## Like test, without crash, soak and browser tests
	$(PYTEST) -n 2 -m "not ($(SLOW))"

soak: install ## Break it for an hour: 600 kills of worker, API and Redis, then 30 minutes of load; every batch is counted
	$(BIN)/python -m tests.chaos --kills 600 --soak 1800

lint: install ## Style, import contracts, docstrings, types, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/interrogate -v --omit-covered-files -c pyproject.toml learner service
	$(BIN)/mypy
	$(BIN)/deptry .

secrets: ## Draw the passwords that docker compose reads, into deploy/secrets; those that exist stay
	deploy/make-secrets.sh

pin-images: ## Give every image of Dockerfile and compose the digest its tag has now; needs docker
	deploy/pin-images.sh

sbom: install ## Write deploy/sbom.json, the bill of materials, again after a lock changed
	$(BIN)/python -m tests.sbom > deploy/sbom.json

audit: $(AUDIT)/.installed ## Look up what is known of every locked package; fails where that cannot be reached
	echo '$(TORCH)' | $(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps -r /dev/stdin
	$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock
	$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes -r requirements-dev.lock
	$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes -r requirements-build.lock

generate: install ## Make the synchronous client out of the asynchronous one
	$(BIN)/python -m service.client.generate

fuzz: install ## A minute of coverage-guided fuzzing of every decoder; needs atheris in .venv, skipped without
	$(BIN)/python -m tests.fuzz

conformance: install ## Ask the running service all that its OpenAPI document allows, and much that it does not; minutes
	$(BIN)/python -m tests.conformance

clean: ## Remove the environment, caches and the demo's files; ./levit-state stays
	rm -rf $(VENV) $(AUDIT) demo-state demo.png demo.json .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage* *.egg-info

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "make: Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# After what is locked, so that nothing else is taken from its index.
$(TORCH_STAMP): | $(VENV)/.locked
	@echo "Installing $(TORCH): once, and it may take minutes"
	$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 2 --timeout 30) "$(TORCH)"
	@rm -f $(VENV)/.torch-*
	@touch $@

$(VENV)/.locked: requirements.lock requirements-dev.lock requirements-build.lock $(VENV)/.made
	$(PIP) install --require-hashes -r requirements.lock -r requirements-dev.lock -r requirements-build.lock
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.locked $(TORCH_STAMP)
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(AUDIT)/.installed: requirements-audit.lock
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements-audit.lock
	@touch $@
