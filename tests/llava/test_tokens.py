"""Prompts and processors that are not as expected: no pad token, no patch size, words that mean something."""

import pytest
import torch
from PIL import Image
from tiny_llava import make_encoder, make_llava
from transformers import PixtralImageProcessor, PixtralProcessor

from sf_llava.llava import encode_prompts, restore, swap
from sf_llava.llava.tokens import complete_processor, harmless

PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
PROMPTS = [
    "USER: <image> red ? ASSISTANT:",
    "USER: <image> what is on the mat ? ASSISTANT:",
    "USER: a cat ? ASSISTANT:",
]
IMAGES = [[PICTURE], [PICTURE.rotate(90)], []]


@pytest.mark.parametrize("chosen", [[0], [2], [0, 1, 2]])
def test_a_tokenizer_without_pad_token_gives_the_same_answers(llava, processor, chosen):
    prompts, images = [PROMPTS[k] for k in chosen], [IMAGES[k] for k in chosen]
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    padded = encode_prompts(processor, prompts, images)
    processor.tokenizer.pad_token = None
    inputs = encode_prompts(processor, prompts, images)
    assert torch.equal(inputs["attention_mask"], padded["attention_mask"])
    assert inputs.keys() == padded.keys() and processor.tokenizer.pad_token is None
    expected, found = llava.generate(**padded, **options), llava.generate(**inputs, **options)
    assert torch.equal(found[:, -5:], expected[:, -5:])


@pytest.mark.parametrize("text", ["<image> what ?", "what is <image> ? </s> <s>", "<<image>image>"])
def test_words_of_a_question_are_no_tokens_with_a_meaning(processor, text):
    tokenizer = processor.tokenizer
    plain = harmless(processor, text)
    special = {tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "</s>", "<s>")}
    assert special & set(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert not special & set(tokenizer(plain, add_special_tokens=False)["input_ids"])
    assert plain.replace(" ", "") == text.replace(" ", "")
    assert harmless(processor, "what is <image 1> ?") == "what is <image 1> ?"


@pytest.mark.parametrize(
    "fields",
    [
        dict(patch_size=None, num_additional_image_tokens=0, vision_feature_select_strategy=None),
        dict(patch_size=16, num_additional_image_tokens=0, vision_feature_select_strategy="default"),
        dict(patch_size=32, num_additional_image_tokens=1, vision_feature_select_strategy="full"),
    ],
)
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_a_processor_that_counts_otherwise_than_its_tower_is_corrected(processor, fields, strategy):
    llava = make_llava(vision_feature_select_strategy=strategy)
    for name, value in fields.items():
        setattr(processor, name, value)
    complete_processor(llava, processor)
    inputs = encode_prompts(processor, PROMPTS[:1], IMAGES[:1])
    assert (inputs["input_ids"] == 3).sum() == 16 + (strategy == "full")
    llava(**inputs)


def test_a_processor_that_counts_right_is_left_alone(llava, processor):
    processor.patch_size, processor.num_additional_image_tokens = 64, 16  # one square and sixteen more, less CLS
    complete_processor(llava, processor)
    assert (processor.patch_size, processor.num_additional_image_tokens) == (64, 16)


def test_other_processors_are_named(llava, processor):
    tower = llava.model.vision_tower
    pixtral = PixtralProcessor(PixtralImageProcessor(), processor.tokenizer, patch_size=16, image_token="<image>")
    for given, name in (
        (pixtral, "PixtralProcessor"),
        (processor.image_processor, "CLIPImageProcessor"),
        (None, "None"),
    ):
        with pytest.raises(ValueError, match=f"expected the LLaVA's LlavaProcessor, not {name}"):
            swap(llava, given, make_encoder())
    processor.image_processor = PixtralImageProcessor()
    with pytest.raises(ValueError, match="squares of 32 pixels, but the processor's PixtralImageProcessor makes"):
        swap(llava, processor, make_encoder())
    assert llava.model.vision_tower is tower and processor.patch_size == 16


def test_a_processor_without_patch_size_comes_back_without(llava, processor):
    processor.patch_size = None
    swapped = swap(llava, processor, make_encoder())
    assert (encode_prompts(processor, PROMPTS[:1], IMAGES[:1])["input_ids"] == 3).sum() == 16
    restore(swapped)
    assert processor.patch_size is None
