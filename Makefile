# Two commands: make run, make test. Everything is installed into .venv, in the versions of constraints.txt.
#
# PYTHON says which Python to use; a .venv of another one, or one that no longer runs, is made anew.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: run test lab notebooks assets lock clean stale

run: $(VENV)/run          ## execute every notebook on the real model, make pages in build/
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/python -m llama3_scratch run

test: $(VENV)/test        ## everything CI runs
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal

lab: $(VENV)/run          ## open copies of the notebooks, in my_notebooks/
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/python -m llama3_scratch lab

notebooks: $(VENV)/test   ## execute the notebooks and store their outputs
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/python -m ruff format notebooks
	$(BIN)/python -m ruff check --fix notebooks
	$(BIN)/python -m llama3_scratch run --store

assets: $(VENV)/run       ## draw the pictures in assets/
	$(BIN)/python -m llama3_scratch fetch
	$(BIN)/python assets/draw.py

lock:                     ## constraints.txt anew, for every Python and system; versions in it stay if they can (uv)
	uv pip compile pyproject.toml --group lock --all-extras --universal --python-version 3.10 \
		--no-annotate --output-file constraints.txt

clean:                    ## remove what was made, but not what was fetched
	rm -rf build checkpoints/tiny-* checkpoints/.partial-* checkpoints/.lock notebooks/.*.partial notebooks/.lock \
		.mypy_cache .pytest_cache .ruff_cache

# What follows makes .venv. One that is there is kept if its Python runs, is one of those below, and has the version of
# the one that was named, if one was; else it is made anew, whatever the dates of its files say.
FITS := (3, 10) <= v < (3, 15)
VERSION := import sys; v = tuple(sys.version_info[:2]); print(sys.version.split()[0] if $(FITS) else "")
UV := $(shell command -v uv 2>/dev/null)
NAMED := $(filter-out file default,$(origin PYTHON))
HAVE := $(shell $(BIN)/python -c '$(if $(UV),,import pip; )$(VERSION)' 2>/dev/null)
WANT := $(if $(NAMED),$(shell $(PYTHON) -c '$(VERSION)' 2>/dev/null),$(HAVE))
STALE := $(if $(and $(HAVE),$(filter $(HAVE),$(WANT))),,stale)

# It is made by the Python itself; by uv, if there is one, where the Python cannot (Debian without python3-venv) or will
# not do and was not named. These words are read by any Python, however old.
LOOK := import sys; v = tuple(sys.version_info[:2]); print("wrong %d.%d" % v if not $(FITS) else \
	"good" if __import__("importlib.util").util.find_spec("ensurepip") else "bare")
FOUND := $(if $(STALE),$(or $(shell $(PYTHON) -c '$(LOOK)' 2>/dev/null),absent))
SAY_wrong := llama3_scratch needs Python 3.10 to 3.14, and $(PYTHON) is $(lastword $(FOUND)): name another one, as in 'make run PYTHON=python3.12'
SAY_bare := $(PYTHON) cannot make a .venv: install what it lacks (Debian, Ubuntu: apt install python3-venv), or uv
SAY_absent := no Python runs by the name $(PYTHON): name one of 3.10 to 3.14, as in 'make run PYTHON=python3.12', or install uv
ifeq ($(FOUND),good)
MAKE_VENV := $(PYTHON) -m venv --clear $(VENV)
else ifneq ($(and $(UV),$(if $(NAMED),$(filter-out wrong,$(firstword $(FOUND))),uv)),)
MAKE_VENV := uv venv --clear $(if $(NAMED),--python "$(PYTHON)") $(VENV)
else
MAKE_VENV := echo "$(SAY_$(firstword $(FOUND)))" >&2; exit 1
endif

# Prints the command, and then what is being downloaded. Nothing is compiled beforehand: Python does it with what is
# imported, and that is a small part.
INSTALL = @if $(BIN)/python -c 'import pip' 2>/dev/null; then set -- $(BIN)/python -m pip install --no-compile; \
	else set -- uv pip install --python $(BIN)/python; fi; set -x; "$$@" --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# torch and what builds this package come first; the rest then finds them.
$(VENV)/run: pyproject.toml constraints.txt $(STALE)
	@$(if $(STALE),$(MAKE_VENV),true)
	$(INSTALL) torch hatchling editables
	$(INSTALL) --no-build-isolation --editable '.[notebooks]'
	@touch $@

$(VENV)/test: $(VENV)/run
	$(INSTALL) --no-build-isolation --editable '.[test]'
	@touch $@
