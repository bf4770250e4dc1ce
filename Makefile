# make quickstart   bootstrap a student from the mini CLIP, offline, in minutes
# make test         lint, then all tests
# Both set everything up from nothing: a virtual environment in .venv with the package and its tools.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test lint clean

quickstart: $(INSTALLED)
	$(VENV)/bin/python scripts/bootstrap_clip.py --output runs/quickstart --resume

test: lint
	$(VENV)/bin/python -m pytest -n 2

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build *.egg-info
