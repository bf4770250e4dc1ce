"""Averaged visual tokens in a LLaVA: what the projector reads, the prompt's token count, and the way back."""

import pytest
import torch
from PIL import Image

from sf_llava.plugin import encode_prompts
from sf_llava.plugin.pooling import pooled

PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"


def test_the_projector_reads_the_mean_of_every_square_of_patches(llava, processor):
    before = encode_prompts(processor, [PROMPT], [[PICTURE]])
    tower, config = llava.model.vision_tower, llava.config.vision_config
    side = config.image_size // config.patch_size
    with torch.no_grad():
        tokens = tower(before["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:].double()
        plain = llava(**before).logits
        with pooled(llava, processor):
            inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
            read = llava.get_image_features(inputs["pixel_values"], vision_feature_layer=-2).pooler_output[0]
            llava(**inputs)
        again = llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits
    squares = [
        torch.stack([tokens[(2 * y + dy) * side + 2 * x + dx] for dy in (0, 1) for dx in (0, 1)]).mean(dim=0)
        for y in range(side // 2)
        for x in range(side // 2)
    ]
    with torch.no_grad():
        wanted = llava.model.multi_modal_projector(torch.stack(squares).float())
    assert (inputs["input_ids"] == processor.image_token_id).sum() == len(squares)
    torch.testing.assert_close(read, wanted)
    assert torch.equal(plain, again) and llava.model.vision_tower is tower


def test_squares_that_do_not_divide_the_patches_are_refused(llava, processor):
    with pytest.raises(ValueError, match="do not divide into squares of 3 x 3"), pooled(llava, processor, 3):
        pass
