.PHONY: quickstart test slow lab refresh bench docs clean hooks
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

help:
	@echo "make quickstart  set up, then train on real floods and map them (2 to 12 minutes after the installation)"
	@echo "make test        set up, then the default test suite"
	@echo "make slow        the tests that take minutes"
	@echo "make lab         JupyterLab on 127.0.0.1 with the notebooks"
	@echo "make refresh     re-run the notebooks whose committed outputs are stale"
	@echo "make bench       speed, side by side with what it is compared to (a quarter of an hour; writes tests/bench/RESULTS.md)"
	@echo "make docs        the notebooks as HTML pages in _docs/"
	@echo "make hooks       the pre-commit hook that cleans, exports and lints"

$(VENV)/.made:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV) || (echo "no venv: apt install python3-venv" && rm -rf $(VENV) && false)
	$(BIN)/pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.installed: settings.ini setup.py pyproject.toml | $(VENV)/.made
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

$(VENV)/.lab: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[lab]'
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/geoseg run floods --out out/quickstart

test: $(VENV)/.dev
	$(BIN)/pytest -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.dev
	$(BIN)/pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

lab: $(VENV)/.lab
	$(BIN)/jupyter lab --ip 127.0.0.1 --notebook-dir nbs

refresh: $(VENV)/.dev
	$(BIN)/python tests/refresh.py

bench: $(VENV)/.bench
	rm -rf out/bench
	$(BIN)/geoseg run bench --out out/bench
	$(BIN)/python tests/bench/quote.py out/bench/95_bench/bench.json

docs: $(VENV)/.dev
	$(BIN)/jupyter nbconvert --to html --output-dir _docs nbs/index.ipynb nbs/[0-9]*.ipynb nbs/jobs/*.ipynb

hooks: $(VENV)/.dev
	@hook="$$(git rev-parse --git-path hooks)/pre-commit"; mkdir -p "$$(dirname "$$hook")"; \
	if [ -e "$$hook" ]; then echo "$$hook is there already; remove it first"; exit 1; fi; \
	printf '#!/bin/sh\nexec "$$(git rev-parse --show-toplevel)/.ci/pre-commit"\n' > "$$hook"; chmod +x "$$hook"; echo "$$hook"

clean:
	rm -rf out build dist _docs *.egg-info
