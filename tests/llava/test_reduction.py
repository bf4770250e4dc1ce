"""A quarter of the visual tokens in a LLaVA: what the projector reads, the prompt's token count, and the way back."""

import pytest
import torch
from PIL import Image
from tiny_llava import make_llava
from transformers import SiglipVisionConfig

from sf_llava.llava import encode_prompts
from sf_llava.llava.reduction import REDUCERS, reduced

PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"


@pytest.mark.parametrize("kind", REDUCERS)
def test_the_projector_reads_a_quarter_of_the_tokens(llava, processor, kind):
    before = encode_prompts(processor, [PROMPT], [[PICTURE]])
    tower, config = llava.model.vision_tower, llava.config.vision_config
    side = config.image_size // config.patch_size
    with torch.no_grad():
        tokens = tower(before["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:].double()
        plain = llava(**before).logits
        with reduced(llava, processor, kind):
            inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
            read = llava.get_image_features(inputs["pixel_values"], vision_feature_layer=-2).pooler_output[0]
            llava(**inputs)
        again = llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits
    corners = [2 * y * side + 2 * x for y in range(side // 2) for x in range(side // 2)]
    if kind == "random":
        squares = list(tokens)
    else:
        offsets = (0, 1, side, side + 1) if kind == "pooled" else (0,)
        squares = [tokens[[corner + offset for offset in offsets]].mean(dim=0) for corner in corners]
    with torch.no_grad():
        wanted = llava.model.multi_modal_projector(torch.stack(squares).float())
    assert (inputs["input_ids"] == processor.image_token_id).sum() == len(corners)
    if kind == "random":  # tokens of different places, in their order
        found = torch.cdist(read, wanted).argmin(dim=1)
        assert torch.equal(found, found.unique()) and len(found) == len(corners)
        wanted = wanted[found]
    torch.testing.assert_close(read, wanted)
    assert torch.equal(plain, again) and llava.model.vision_tower is tower


def test_patches_that_do_not_divide_into_squares_are_refused(llava, processor):
    llava.config.vision_config.image_size = 3 * llava.config.vision_config.patch_size
    with (
        pytest.raises(ValueError, match="3 x 3 patches do not divide into squares of 2 x 2"),
        reduced(llava, processor, "pooled"),
    ):
        pass


@pytest.mark.parametrize("patch_size", [16, None])
def test_a_tower_without_cls_is_pooled_too(processor, patch_size):
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2)
    vision = SiglipVisionConfig(**sizes, image_size=64, patch_size=16)
    llava = make_llava(vision, vision_feature_select_strategy="full")
    processor.patch_size, processor.num_additional_image_tokens = patch_size, 0
    processor.vision_feature_select_strategy = "full" if patch_size else None
    before = processor.to_dict()
    with torch.no_grad(), reduced(llava, processor, "pooled"):
        inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
        read = llava.get_image_features(inputs["pixel_values"], vision_feature_layer=-2).pooler_output[0]
        llava(**inputs)
    tokens = llava.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0]
    squares = tokens.reshape(2, 2, 2, 2, 64).mean(dim=(1, 3)).reshape(4, 64)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 4
    torch.testing.assert_close(read, llava.model.multi_modal_projector(squares))
    assert processor.to_dict() == before


def test_a_tower_whose_patches_cannot_be_counted_is_refused(llava, processor):
    llava.config.vision_config.patch_size = [16, 16]
    with (
        pytest.raises(ValueError, match="patches of a CLIPVisionConfig cannot be counted"),
        reduced(llava, processor, "pooled"),
    ):
        pass
