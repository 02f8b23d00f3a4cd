# make help shows what there is.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types format unit integration fuzz bench schema clean

BIN := .venv/bin
# Where the demo runs: qemu:///session unless said otherwise.
CONNECT ?=
# The tests mostly wait for guests, so two workers take little more than half the time of one.
WORKERS ?= 2
# For make fuzz: which parsers (all unless said otherwise), and for how long each.
TARGETS ?=
SECONDS ?= 600
PARALLEL := -n $(WORKERS) --no-loadscope-reorder
# More arguments for pytest, e.g. make unit PYTEST="-x -k store"
PYTEST ?=
SCRIPTS := .ci/setup .ci/run .ci/demo tests/support/system-host tests/support/debian_guest/build \
	tests/support/debian_guest/customize tests/support/builder_standin/host_bin/image-builder \
	tests/support/bootc_standin/bootc \
	images/centos-db/rootfs/usr/libexec/centos-db/data

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what the tests and the demo need; quick when it is there
	@.ci/setup test

demo: ## Build three versions, bring a lab up, reset it, take it down (CONNECT=URI for another host)
	@.ci/setup demo
	@.ci/demo $(CONNECT)

test: ## All checks: lint, format, types, unit and integration tests
	@.ci/setup test
	@$(MAKE) --no-print-directory lint types
	$(BIN)/pytest $(PARALLEL) --durations=20 $(PYTEST)

lint: ## Check style, format and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	shellcheck $(SCRIPTS)
	$(BIN)/hadolint images/*/Containerfile

types: ## Check types
	$(BIN)/mypy

format: ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: ## Tests without a host: seconds
	$(BIN)/pytest tests/unit $(PARALLEL) $(PYTEST)

integration: ## Tests on real libvirt hosts: minutes
	$(BIN)/pytest tests/integration $(PARALLEL) --durations=20 $(PYTEST)

fuzz: ## Look for inputs that a parser does not survive: TARGETS="qcow2 ova", SECONDS=600 each
	@.ci/setup test
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(TARGETS)

bench: ## Measure, and compare with the same done by hand
	$(BIN)/python -m bench

schema: ## Print the JSON Schema of lab files
	@$(BIN)/poclab schema

clean: ## Remove what make made, the cached Debian tree too
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
