"""Fixtures of the plug-in's tests."""

import pytest
from tiny_llava import CHAT_TEMPLATE, make_llava, make_tokenizer
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    return make_llava()


def make_processor() -> LlavaProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return LlavaProcessor(
        images,
        make_tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture
def processor() -> LlavaProcessor:
    return make_processor()
