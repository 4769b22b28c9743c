# `make` alone explains itself. Every target first makes sure of the environment, so that each is one command.
PYTHON ?= python3
STAMP := .venv/.installed
BIN := .venv/bin
RLM_CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rlm-server

.PHONY: help env demo serve test conformance compatible test-stubs containers lint format generate breaking pin docs image bench-start bench-sandbox bench-contexts bench-money bench-loop bench-neighbours bench-service soak clean clean-image
.DEFAULT_GOAL := help

help:  ## Explain the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP)  ## Set up .venv from requirements/ (the others do it when it is needed)

# Redone only when what it is made from changes.
$(STAMP): $(wildcard requirements/*.txt) pyproject.toml scripts/environment
	@PYTHON=$(PYTHON) scripts/environment
	@touch $@

demo: image  ## Show the whole thing working, with a scripted model and no key
	$(BIN)/python -m rlm_server.commands.demo

serve: image  ## Run the server on this machine (ARGS= adds options)
	$(BIN)/rlm-server serve $(ARGS)

# Each of the processes holds the images, some hundred megabytes: so many are enough.
test: image  ## Run every test, on all cores (ARGS= adds pytest options, or names files and tests to run alone)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal --durations 10 $(ARGS)

conformance: image  ## Run CPython's own tests in the sandbox, in 2 minutes (ARGS=test_re runs one module)
	$(BIN)/python -m tests.conformance $(ARGS)

compatible: $(STAMP)  ## Try compatible endpoints on llama.cpp's own server and a small model (600 MB, fetched once)
	scripts/compatible
	RLM_COMPATIBLE=$(RLM_CACHE)/compatible $(BIN)/python -m pytest -vv tests/compatible/llama.py $(ARGS)

test-stubs: image  ## Have Go, TypeScript, Java and Rust make stubs from proto/, compile them and call a server
	$(BIN)/python -m pytest -vv tests/stubs/languages.py $(ARGS)

containers: $(STAMP)  ## Check docker/ with hadolint and schemas, and do as the Dockerfile says, as root (3 minutes)
	scripts/containers
	RLM_CACHE=$(RLM_CACHE) $(BIN)/python -m pytest -vv tests/containers/containers.py $(ARGS)

lint: $(STAMP)  ## Check style, types, the protocol, import arrows and the pinned files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint proto
	$(BIN)/python -m pytest tests/repository/test_arrows.py tests/repository/test_pins.py

format: $(STAMP)  ## Rewrite the code in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: $(STAMP)  ## Write the protobuf and gRPC code from proto/
	scripts/generate

docs: $(STAMP)  ## Write docs/settings.md and docs/limits.md from the code
	$(BIN)/python -m rlm_server.config.page docs/settings.md
	$(BIN)/python -m rlm_server.api.limits_page docs/limits.md

breaking: $(STAMP)  ## Look for changes of proto/ that break clients (ARGS=--accept takes what is there from now on)
	scripts/breaking $(ARGS)

pin: $(STAMP)  ## Write requirements/*.txt anew (ARGS=--upgrade takes the newest versions)
	scripts/pin $(ARGS)

image: $(STAMP)  ## Build the guest image, if it is not in the cache (1 to 3 minutes, once)
	$(BIN)/rlm-server image build

bench-start: image  ## Measure how long commands take to start (ARGS="--beside PATH" measures another checkout too)
	$(BIN)/python -m benchmarks.start $(ARGS)

bench-sandbox: image  ## Measure the sandbox and its peers on this machine (ARGS="--peers none" does without them)
	$(BIN)/python -m benchmarks.sandbox $(ARGS)

bench-contexts: image  ## Measure contexts on this machine, in 2 minutes (ARGS=--large: a corpus of 10 GiB)
	$(BIN)/python -m benchmarks.contexts $(ARGS)

bench-money: image  ## Measure money on this machine, on SQLite and Postgres, in 6 minutes (ARGS=--large: 100,000 calls)
	$(BIN)/python -m benchmarks.money $(ARGS)

bench-loop: image  ## Measure what the loop itself costs, beside the reference implementation, in 3 minutes
	$(BIN)/python -m benchmarks.loop $(ARGS)

bench-neighbours: image  ## Measure what tenants can do to each other, in 13 minutes (ARGS="--only NAME,NAME --seconds 4")
	$(BIN)/python -m benchmarks.neighbours $(ARGS)

bench-service: image  ## Measure what the service costs beside the work it serves, in 2 minutes
	$(BIN)/python -m benchmarks.service $(ARGS)

soak: image  ## Keep 11,000 sessions busy for 66,000 turns, 1,000 of them live (ARGS="--turns 5000" ends sooner)
	$(BIN)/python -m benchmarks.soak $(ARGS)

clean:  ## Remove .venv and everything made here, but not the guest image
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-image:  ## Remove the guest image from the cache
	rm -rf "$(RLM_CACHE)/images"
