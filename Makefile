# Two commands: make run, make test. Everything is installed into .venv, through constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Read by pip wherever it runs, also for the packages that build other packages.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test lab notebooks assets clean

run: $(VENV)/run          ## execute every notebook on the real model, write HTML to build/
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/python -m llama3_scratch run

test: $(VENV)/test        ## everything CI runs
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal

lab: $(VENV)/run          ## open the notebooks
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(VENV)/test   ## execute the notebooks and store their outputs
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/ruff format notebooks
	$(BIN)/ruff check --fix notebooks
	$(BIN)/python -m llama3_scratch run --store

assets: $(VENV)/run       ## draw the pictures in assets/
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/python assets/draw.py

clean:                    ## remove what was made, but not what was fetched
	rm -rf build checkpoints/tiny-* checkpoints/.partial-* notebooks/.*.partial .pytest_cache .ruff_cache

# torch first and alone: the others then find it installed, and nobody asks for another build of it.
$(VENV)/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/test: $(VENV)/run
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
