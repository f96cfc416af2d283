# make train: train RNN-EM on Shapes (settings of your own: ARGS="model=nem seed=1").  make test: check style and types,
# and run the tests.  make reproduce: train, score and tabulate all rows of the results (days on a CPU).  make evaluate:
# score the shipped checkpoints again.  Each sets up .venv first.
PYTHON ?= python3
VENV := .venv
ARGS ?=

.PHONY: train test reproduce evaluate clean

train: $(VENV)/installed
	$(VENV)/bin/python train.py $(ARGS)

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

reproduce: $(VENV)/installed
	$(VENV)/bin/python -m reproduce all $(ARGS)

evaluate: $(VENV)/installed
	$(VENV)/bin/python -m reproduce evaluate $(ARGS)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=/path/to/python" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
