# The two commands a newcomer needs are `make lab` and `make test`; each does all the set-up itself.
# Works with GNU make 3.81 (macOS). `make help` lists the targets.
#
#   make lab LAB_ARGS=--no-browser          options for `workbench lab`
#   make test PYTEST_ARGS="-k scheduler"    options for pytest
#   make setup PYTHON=/path/to/python3.12 TORCH=cpu|cuda INSTALLER=uv|pip

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.workbench-setup
PYTHON ?=
TORCH ?= auto
INSTALLER ?= auto
LAB_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
JOBS ?= 2
TORCH_PIN := 2.13.0

.PHONY: help setup lab demo test test-gpu lint doctor bench-gpu browser constraints clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/'

# The first Python that runs and is new enough; a version manager's shim may exist and not run.
define find_python
for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1; \
  then python="$$candidate"; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "Python 3.11 or newer is needed; python3 here is: $$(python3 --version 2>&1 | head -n 1)." >&2; \
  echo "Install one, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; \
fi
endef

$(STAMP): pyproject.toml constraints.txt workbench/cli/setup_env.py
	@$(find_python); "$$python" -I workbench/cli/setup_env.py \
	  --venv $(VENV) --torch $(TORCH) --installer $(INSTALLER)
	@touch $@

setup: $(STAMP) ## make and fill .venv (every other target does this by itself)

lab: $(STAMP) ## open JupyterLab on notebooks/00_start.ipynb
	@$(BIN)/workbench lab $(LAB_ARGS)

demo: $(STAMP) ## run the full-engine notebook headless and print what it measured
	@$(BIN)/workbench demo $(DEMO_ARGS)

doctor: $(STAMP) ## say what this machine has and what will therefore run
	@$(BIN)/workbench doctor

lint: $(STAMP) ## ruff check, ruff format, mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread per worker: two workers with a thread pool each only get in each other's way.
test: lint browser ## lint, then every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

test-gpu: $(STAMP) ## the tests that need a CUDA GPU
	$(BIN)/pytest -m "gpu or multi_gpu" $(PYTEST_ARGS)

bench-gpu: $(STAMP) ## on a CUDA GPU: check every kernel, tune and time them, then the engine (15 minutes)
	$(BIN)/pytest -m gpu tests/kernels tests/ops tests/run tests/engine $(PYTEST_ARGS)
	$(BIN)/workbench tune all --quick
	$(BIN)/workbench bench kernels --quick $(BENCH_ARGS)
	$(BIN)/workbench bench gpu

# Only root on Debian or Ubuntu gets Chromium unasked; elsewhere the browser tests say what they miss.
browser: $(STAMP)
	@if $(BIN)/python -P -m workbench.cli.machine.browser >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing Chromium for the browser tests"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
	    </dev/null >/dev/null 2>&1 || echo "Chromium could not be installed: its tests will be skipped"; \
	else echo "no Chromium found: the browser tests will be skipped"; fi

constraints: ## resolve every pin anew (needs uv; sees the public index alone)
	printf 'torch==$(TORCH_PIN)\n' | env -u UV_FIND_LINKS -u UV_INDEX -u UV_INDEX_URL \
	  -u UV_EXTRA_INDEX_URL -u UV_DEFAULT_INDEX -u UV_CONSTRAINT \
	  uv pip compile pyproject.toml - --all-extras --universal --python-version 3.11 --upgrade \
	  --no-config --no-annotate --no-emit-package llm-workbench \
	  --custom-compile-command "make constraints" --quiet --output-file constraints.txt

clean: ## remove what the tools leave behind; .venv stays
	rm -rf build dist .artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
