# `make demo` trains and reports on the synthetic dataset, `make test` runs all checks; both need only Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
WORLD := data/world
RUN := runs/quickstart
SHUFFLED := runs/quickstart_shuffled
LAUNCH := $(BIN)/accelerate launch --config_file configs/accelerate/cpu.yaml launch/train_multitask.py

.PHONY: demo study study-quick test lint docs clean

$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,demo,docs]"
	touch $@

$(WORLD)/world.json: | $(VENV)/.ready
	$(BIN)/multitask-vl make-synthetic --out $(WORLD)

demo: $(VENV)/.ready $(WORLD)/world.json
	rm -rf $(RUN) $(SHUFFLED)
	$(BIN)/multitask-vl extract --config configs/examples/quickstart.yaml
	$(LAUNCH) --config configs/examples/quickstart.yaml
	$(LAUNCH) --config configs/examples/quickstart_shuffled.yaml
	$(BIN)/multitask-vl report $(RUN) --control $(SHUFFLED)

study study-quick: $(VENV)/.ready $(WORLD)/world.json
	$(BIN)/multitask-vl extract --config configs/examples/quickstart.yaml
	$(BIN)/multitask-vl sweep configs/sweeps/routing.yaml --max-parallel 2 $(SMOKE)
	$(BIN)/python -m studies.routing.study $(QUICK)

study-quick: SMOKE := --smoke
study-quick: QUICK := --quick

test: $(VENV)/.ready lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered --cov-fail-under=90

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.ready
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) data runs site
