"""Fewer of a LLaVA's own tokens: what the projector reads, the prompt's count, places, costs, and the way back."""

import pytest
import torch
from PIL import Image
from tiny_llava import make_llava
from transformers import Dinov2Config, SiglipVisionConfig

from sf_llava.llava import encode_prompts, generate_in_place
from sf_llava.llava.costs import count_picture_costs
from sf_llava.llava.positions import embed_in_place
from sf_llava.llava.reduction import REDUCERS, ReducedTower, reduced
from sf_llava.reduction.selection import pick_diverse, prune_and_merge, zip_tokens
from sf_llava.reduction.tome import merge_behind

PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"


@pytest.mark.parametrize("kind", ["pooled", "uniform", "random"])
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


def read_through(llava, processor, kind, count=None):
    """What the projector gives for the picture through a reduced tower, and the prompt's image tokens."""
    with torch.no_grad(), reduced(llava, processor, kind, count):
        inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
        llava(**inputs)
        read = llava.get_image_features(inputs["pixel_values"], vision_feature_layer=-2).pooler_output[0]
    return read, int((inputs["input_ids"] == processor.image_token_id).sum())


def seen_by_eager(llava, pixels):
    """States, attention and keys of a tower as the host gives them in its eager attention."""
    tower = llava.model.vision_tower
    tower.set_attn_implementation("eager")
    outputs = tower(pixels, output_hidden_states=True, output_attentions=True)
    tower.set_attn_implementation("sdpa")
    blocks = [module for name, module in tower.named_modules() if name.rpartition("layers.")[2] in ("1", "2")]
    projected = [
        [
            getattr(block.self_attn, name)(block.layer_norm1(outputs.hidden_states[index]))
            for name in ("q_proj", "k_proj")
        ]
        for index, block in enumerate(blocks, start=1)
    ]
    return outputs.hidden_states[-2], outputs.attentions[1], projected


@pytest.mark.parametrize("count", [3, 7])
def test_what_a_selection_looks_at_is_what_the_host_computes(llava, processor, count):
    """Of three blocks the LLaVA reads what the second gives: its attention and keys; PruMerge takes those behind."""
    pixels = encode_prompts(processor, [PROMPT], [[PICTURE]])["pixel_values"]
    with torch.no_grad():
        state, attention, ((_, keys), (queries, keys_behind)) = seen_by_eager(llava, pixels)
        patches, mean_keys = state[:, 1:], keys[:, 1:].unflatten(-1, (2, 32)).mean(dim=2)
        looked = attention[:, :, 0, 1:].mean(dim=1)
        looked_behind = (queries[:, :1] @ keys_behind.transpose(1, 2) / 64**0.5).softmax(dim=-1)[:, 0, 1:]
        project = llava.model.multi_modal_projector
        wanted = {
            "tome": merge_behind(patches, mean_keys, count),
            "visionzip": zip_tokens(patches, mean_keys, looked, count),
            "divprune": pick_diverse(patches, project(patches), count),
            "prumerge": prune_and_merge(patches, keys_behind[:, 1:], looked_behind, count),
        }
        for kind, (tokens, _) in wanted.items():
            read, written = read_through(llava, processor, kind, count)
            assert written == count, kind
            torch.testing.assert_close(read, project(tokens)[0], msg=kind)


@pytest.mark.parametrize("kind", sorted(set(REDUCERS) - {"prumerge"}))
def test_all_tokens_in_their_places_are_the_plain_model(llava, processor, kind):
    plain = llava.generate(**encode_prompts(processor, [PROMPT], [[PICTURE]]), max_new_tokens=6)[:, -6:]
    with reduced(llava, processor, kind, 16):
        inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
        assert torch.equal(generate_in_place(llava, inputs, 16, max_new_tokens=6), plain)
        assert embed_in_place(llava, inputs, 16).position_ids[0].diff().eq(1).all()


def test_tokens_that_stay_are_read_in_their_places(llava, processor):
    with reduced(llava, processor, "uniform", 4):
        prompt = embed_in_place(llava, encode_prompts(processor, [PROMPT], [[PICTURE]]), 16)
    positions = prompt.position_ids[prompt.latents]
    assert (positions - positions[0]).tolist() == [0, 2, 8, 10]  # the first of every 2 x 2 of 4 x 4 patches


@pytest.mark.parametrize("kind", REDUCERS)
def test_a_number_that_the_patches_cannot_become_is_refused(llava, processor, kind):
    before = processor.to_dict()
    with (
        pytest.raises(ValueError, match="16 patches cannot become 17 tokens: expected 1 to 16"),
        reduced(llava, processor, kind, 17),
    ):
        pass
    assert processor.to_dict() == before and not isinstance(llava.model.vision_tower, ReducedTower)


def test_without_cls_attention_is_averaged_over_patches_or_missed(processor):
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2)
    llava = make_llava(SiglipVisionConfig(**sizes, image_size=64, patch_size=16), vision_feature_select_strategy="full")
    pixels = encode_prompts(processor, [PROMPT], [[PICTURE]])["pixel_values"]
    with torch.no_grad():
        state, attention, ((_, keys), _) = seen_by_eager(llava, pixels)
        wanted = zip_tokens(state, keys.unflatten(-1, (2, 32)).mean(dim=2), attention.mean(dim=(1, 2)), 7).tokens
        read, written = read_through(llava, processor, "visionzip", 7)
        torch.testing.assert_close(read, llava.model.multi_modal_projector(wanted)[0])
    assert written == 7
    with pytest.raises(ValueError, match="prumerge follows what CLS attends to, and this LLaVA's tower has no CLS"):
        read_through(llava, processor, "prumerge", 7)


def test_a_tower_with_other_projections_is_told_what_it_can_take(processor):
    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=2)
    llava = make_llava(Dinov2Config(**sizes, image_size=64, patch_size=16))
    before = processor.to_dict()
    for kind in ("tome", "visionzip", "prumerge"):
        with pytest.raises(ValueError, match=r"no self_attn.[qk]_proj in its blocks: take pooled, uniform, random or"):
            read_through(llava, processor, kind)
    assert read_through(llava, processor, "divprune")[1] == 4 and processor.to_dict() == before


def test_what_a_picture_costs_is_counted_by_hand(llava, processor):
    """Three blocks of width 64 and 128 inside; a patch of 16 x 16 x 3; the LLM has two, and a gate."""
    with reduced(llava, processor, "random", 5):
        costs = count_picture_costs(llava, processor, 6)
    tokens, read = 17, 11
    tower = 3 * (tokens * (4 * 64 * 64 + 2 * 64 * 128) + 2 * tokens * tokens * 64) + 16 * 768 * 64
    prefill = 2 * (read * (4 * 64 * 64 + 3 * 64 * 128) + 2 * read * read * 64)
    assert costs[:2] == (5, tower)
    assert costs.prefill == pytest.approx(prefill, rel=1e-3)  # some releases make rotary angles by a product


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
