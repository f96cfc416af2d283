PYTHON ?= python3
VENV := .venv
ARGS ?=

.PHONY: help train test reproduce evaluate clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## */\1\t/p' Makefile | expand -t 12
	@echo 'Each target sets up $(VENV) first. Settings of your own: make train ARGS="model=nem seed=1".'

train: $(VENV)/installed  ## train RNN-EM on Shapes
	$(VENV)/bin/python train.py $(ARGS)

test: $(VENV)/installed  ## check style and types, and run the tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

reproduce: $(VENV)/installed  ## train, score and tabulate all rows of the results (days on a CPU)
	$(VENV)/bin/python -m reproduce all $(ARGS)

evaluate: $(VENV)/installed  ## score the shipped checkpoints again
	$(VENV)/bin/python -m reproduce evaluate $(ARGS)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=/path/to/python" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[test]'
	touch $@

clean:  ## delete .venv
	rm -rf $(VENV)
