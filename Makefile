# Two promises: `make demo` shows the whole path, `make test` passes; each on a fresh machine with only Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
WORLD := data/world
RUN := runs/quickstart
BLIND := runs/quickstart_blind

.PHONY: demo study study-quick test lint docs clean

$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,demo,docs]"
	touch $@

$(WORLD)/world.json: | $(VENV)/.ready
	$(BIN)/python -m multitask_vl.synthetic.build --out $(WORLD)

demo: $(VENV)/.ready $(WORLD)/world.json
	rm -rf $(RUN) $(BLIND)
	$(BIN)/python launch/extract_features.py --config configs/examples/quickstart.yaml
	$(BIN)/accelerate launch --config_file configs/accelerate/cpu.yaml launch/train_multitask.py --config configs/examples/quickstart.yaml
	$(BIN)/accelerate launch --config_file configs/accelerate/cpu.yaml launch/train_multitask.py --config configs/examples/quickstart_shuffled.yaml
	$(BIN)/python -m multitask_vl.reports $(RUN) --control $(BLIND)

study study-quick: $(VENV)/.ready $(WORLD)/world.json
	$(BIN)/python launch/extract_features.py --config configs/examples/quickstart.yaml
	$(BIN)/python launch/sweep.py configs/sweeps/routing.yaml --at-once 2 $(QUICK)
	$(BIN)/python -m studies.routing.study $(QUICK)

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
