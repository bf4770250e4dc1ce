"""The encoders of the paper's Table 7 in a LLaVA with CLIP ViT-L/14's width: exact token counts, full structure."""

import pytest
import torch
from tiny_llava import make_llava

from sf_llava.configuration import preset
from sf_llava.llava import count_image_tokens


@pytest.mark.parametrize(
    ("name", "num_latents"), [("sf-l-clip-224", 64), ("sf-l-clip-224", 128), ("sf-l-clip-336", 144)]
)
def test_a_full_size_encoder_gives_exactly_its_latents_and_leaves_its_last_block_out(name, num_latents):
    config = preset(name, num_latents=num_latents)
    with torch.device("meta"):
        model = make_llava(config)
    model.to_empty(device="cpu")
    tower = model.model.vision_tower
    for parameter in model.parameters():
        parameter.data.zero_()
    ran, asked = [], []
    tower.register_forward_pre_hook(lambda *call: asked.append(call[2]["output_hidden_states"]), with_kwargs=True)
    for number, block in enumerate(tower.cortex):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.inference_mode():
        pixels = torch.zeros(1, 3, config.image_size, config.image_size)
        features = model.get_image_features(pixels, vision_feature_layer=-2).pooler_output
    assert features[0].shape == (num_latents, 64) and count_image_tokens(config) == num_latents
    # Where the host asks for one layer the last block is left out; an older one asks for all of them.
    assert ran == list(range(16 if asked == [True] else 15)) and asked in ([True], [-2], [[-2]])
