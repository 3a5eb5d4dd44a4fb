# make setup | reproduce | lab | test | figures | clean        PROFILE=quick (default) or laptop
PROFILE ?= quick
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup reproduce lab figures test lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

reproduce: setup
	$(BIN)/tying-utils reproduce --profile $(PROFILE)

lab: setup
	$(BIN)/jupyter lab notebooks

figures: setup
	$(BIN)/tying-utils figures --profile $(PROFILE)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: setup lint
	$(BIN)/pytest

clean:
	rm -rf build data/runs data/corpora data/results/quick figures/quick
