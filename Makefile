# make evolve     install what is missing and evolve GRPO on this machine (RUN_DIR=... PRESET=... to change)
# make test       install what is missing, then lint, types, import contracts and all tests but the exhaustive ones
# make test-fast  the same without the slow tests
# make test-all   make test, then the exhaustive tests: kill storms, a thousand compositions, stacks of real servers
# make test-tools install what some exhaustive tests need beside Python packages; without it they are skipped: Chromium, vLLM
# make gpu-check  measure rollout and update with a real model on this machine (MODEL=... to name it), beside TRL where it is installed
# make setup      only install
# make clean      remove what the tools cache; runs/ and .venv stay

PYTHON ?= python3
VENV ?= .venv
PRESET ?= laptop
RUN_DIR ?= runs/$(PRESET)
WORKERS ?= 2
MODEL ?= HuggingFaceTB/SmolLM2-135M-Instruct

BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadgroup
STAMP := $(VENV)/.installed
PACKAGES := poise_core flows tasks studies tests infra examples

# without a GPU the CPU build of torch, a tenth of the size, where its index can be reached
CPU_WHEELS := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null || { $(PYTHON) -c \
	"import urllib.request as u; u.urlopen('$(CPU_WHEELS)/torch/', timeout=5)" 2>/dev/null \
	&& echo --extra-index-url $(CPU_WHEELS); })

# compiled modules are kept: the tests start some hundred processes that import them
export PYTHONDONTWRITEBYTECODE :=

# no telemetry and no look-ups, whatever a tool's default is
export DO_NOT_TRACK := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_OFFLINE := 1
export LANGSMITH_TRACING := false

.PHONY: evolve test test-fast test-all test-exhaustive test-tools gpu-check checks setup lint format types imports clean

evolve: setup
	$(BIN)/poise evolve --preset "$(PRESET)" --run-dir "$(RUN_DIR)"

test: checks
	$(PYTEST) -m "not exhaustive"

test-fast: checks
	$(PYTEST) -m "not slow and not exhaustive"

test-all: test
	$(MAKE) --no-print-directory test-exhaustive

# one worker more: these tests also wait, for servers, for limits and for what they have killed
test-exhaustive: setup
	$(BIN)/pytest -n $$(($(WORKERS) + 1)) --dist loadgroup -m exhaustive --durations 40

test-tools: setup
	command -v chromium >/dev/null || { apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium; }
	$(BIN)/poise sampler install

gpu-check: setup
	$(BIN)/python tests/benchmarks/bench_gpu.py --model "$(MODEL)" $(GPU_CHECK)

# side by side: mypy keeps one processor busy for as long as the others take together
checks: setup
	@$(MAKE) --no-print-directory --jobs 3 lint types imports

setup: $(STAMP)

# torch first, so that nothing else decides which build of it is taken
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch $(TORCH_INDEX)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,llm,server]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .benchmarks
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +
