# Every target sets up what it needs in .venv from requirements.lock; `make help` (the default) lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# All local state; the environment variable SCALINGNOTE_HOME moves it.
HOME_FOLDER := $(or $(SCALINGNOTE_HOME),.scalingnote)
# More arguments for the command of a target: make test ARGS="-k gates"
ARGS ?=

# One installation into .venv at a time, also when two makes run side by side (where the system has flock).
LOCK := $(if $(shell command -v flock 2>/dev/null),flock requirements.lock,)
INSTALL := $(LOCK) $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check lint ui clean distclean

help: ## this list
	@echo "Usage: make TARGET [PYTHON=python3.11] [SCALINGNOTE_HOME=FOLDER] [ARGS=...]"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.demo ## build a retriever from the built-in data, show its measurements and gates (10 minutes; more without bfloat16)
	@echo "Gemma 3 270M is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
	@$(BIN)/scalingnote demo $(ARGS)

test: $(VENV)/.test ## run all tests; those in a browser where Chromium and its driver are installed
	$(BIN)/python -m pytest -n auto $(ARGS)

check: $(VENV)/.lint ## check format, style, types, sizes, commands and links of the documents, in about a minute
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q -p no:cacheprovider --durations=0 --durations-min=5 tests/unit/test_repository.py tests/unit/test_documents.py

lint: $(VENV)/.lint ## check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

ui: $(VENV)/.base ## start the MLflow and Prefect pages on this machine, Ctrl-C stops them
	@$(BIN)/scalingnote ui $(ARGS)

clean: export FOLDER := $(HOME_FOLDER)
clean: ## remove all local state (.scalingnote, or SCALINGNOTE_HOME) and build output
	@# A mistyped SCALINGNOTE_HOME must not cost anybody their files: only a folder that looks like ours is removed. Behind a link the state
	@# lies elsewhere, and a tilde that the shell has left alone is the home folder, as for the commands.
	@case "$$FOLDER" in "~" | "~/"*) FOLDER="$$HOME$${FOLDER#?}" ;; esac; \
	if [ -n "$$(ls -A "$$FOLDER/" 2>/dev/null)" ] && ! { [ -d "$$FOLDER/work" ] && [ -d "$$FOLDER/mlflow/artifacts" ]; }; then \
	  echo "$$FOLDER does not look like scalingnote's state (no work and mlflow/artifacts in it); nothing was removed." >&2; exit 1; fi; \
	if [ -L "$$FOLDER" ] && [ -d "$$FOLDER" ]; then PLACE="$$(cd "$$FOLDER" && pwd -P)" && echo "rm -rf $$PLACE" && rm -rf -- "$$PLACE"; fi; \
	echo "rm -rf $$FOLDER"; rm -rf -- "$$FOLDER"
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	rm -rf $(VENV)

# --- set-up: stamps are written last, so an interrupted installation is repeated -----------------------------------------

# An environment knows the whole path of its folder, and of the code that was installed into it: in a folder that was copied or moved it
# would run the code of the old place, or nothing.
MADE_IN := $(shell sed -n 's|^command = .* -m venv --clear ||p' $(VENV)/pyvenv.cfg 2>/dev/null)
ifneq ($(MADE_IN),)
ifneq ($(MADE_IN),$(abspath $(VENV)))
.PHONY: $(VENV)/.created
endif
endif

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot be used ($$($(PYTHON) --version 2>&1 | head -n 1)): scalingnote needs Python 3.11 to 3.14." >&2; \
	  echo "Install one and name it: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "Python's venv module does not work; on Debian: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.base: $(VENV)/.created requirements.lock pyproject.toml
	@echo "Installing scalingnote (2 GB, a minute or two)"
	@$(INSTALL) setuptools
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint: $(VENV)/.%: $(VENV)/.base
	@echo "Installing the packages for 'make $*'"
	@$(INSTALL) --no-build-isolation -e '.[$*]'
	@touch $@
