PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test bench docs oldest mutation soak gpu format clean

# The main job, on embedded data. Needs Python 3.11 or newer with venv, nothing else.
demo: $(VENV)/.ready
	$(BIN)/reducible demo --out $(OUT)

# Format, lint, types and all tests.
test: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -n 2

# What selection costs on this machine, beside its floor.
bench: $(VENV)/.ready
	$(BIN)/reducible bench

# Tests and timings on a CUDA device, by the torch that is there; says so if there is no device.
gpu:
	PYTHONPATH=src $$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) scripts/gpu.py

# Method pages and result tables, from the table of rules and the results files; then the site.
docs: $(VENV)/.ready-dev
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python scripts/make_site.py

# The trainers' tests again, with the oldest versions of their frameworks that are supported.
oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q -c constraints.txt -e packages/data -e '.[lab,text]' \
		accelerate==1.4.0 datasets==4.0.0 peft==0.18.0 pytorch-lightning==2.4.0 skorch==1.1.0 \
		transformers==5.0.0 trl==0.28.0 hypothesis pytest scipy tensorboard
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-oldest/bin/python -m pytest -q tests/adapters tests/tasks/test_causal_lm.py

# Break the rules, the loop, the gate and the plans one small way at a time; prints what no test notices.
mutation: $(VENV)/.ready-dev
	$(BIN)/python scripts/mutate.py

# Damage the files of runs and kill runs, many times; nothing may go wrong without a word.
soak: $(VENV)/.ready-dev
	$(BIN)/python scripts/soak.py

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.ready: pyproject.toml packages/data/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e packages/data -e '.[lab]'
	touch $@

$(VENV)/.ready-dev: pyproject.toml packages/data/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e packages/data -e '.[dev]'
	touch $@ $(VENV)/.ready

clean:
	rm -rf $(VENV) .venv-oldest build dist .pytest_cache .ruff_cache .hypothesis
