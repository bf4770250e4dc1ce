# make quickstart   bootstrap a student, then ask the mini LLaVA through all towers: offline, in minutes
# make demo         chat with it: CLIP and the student side by side, in a browser
# make test         lint, then all tests
# make test-llava   tests inside the original llava package, in an overlay of its own beside the environment
# All set everything up from nothing: a virtual environment in .venv with the package and its tools.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

# The versions that the llava package was released for; newer ones live in the environment itself.
OVERLAY := .llava-overlay
OVERLAY_PACKAGES := llava-torch==1.2.2.post1 transformers==4.37.2 tokenizers==0.15.1 huggingface-hub==0.23.4 \
	accelerate==0.21.0 numpy==1.26.4 einops shortuuid

.PHONY: quickstart demo test test-llava lint clean

quickstart: $(INSTALLED)
	$(VENV)/bin/python scripts/bootstrap_clip.py --resume
	$(VENV)/bin/python eval/scienceqa.py run --positions-and-bias

demo: $(INSTALLED)
	$(VENV)/bin/python demo/chat.py

test: lint
	$(VENV)/bin/python -m pytest -n 2

test-llava: $(OVERLAY)/.installed
	PYTHONPATH=$(OVERLAY) $(VENV)/bin/python -m pytest -m llava tests/llava_package

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(INSTALLED)

$(OVERLAY)/.installed: $(INSTALLED)
	rm -rf $(OVERLAY)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --target $(OVERLAY) $(OVERLAY_PACKAGES)
	touch $@

clean:
	rm -rf $(VENV) $(OVERLAY) build *.egg-info
