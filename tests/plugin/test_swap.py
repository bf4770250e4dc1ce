"""Swapping a SparseFormer into a loaded LLaVA and out again."""

import copy

import pytest
import torch
from PIL import Image
from tiny_llava import make_encoder, make_llava

from sf_llava.plugin import encode_prompts, restore, swap

PICTURE = Image.effect_noise((48, 40), 90).convert("RGB")
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"


def answer(model, processor, prompts=(PROMPT,), images=((PICTURE,),)):
    inputs = encode_prompts(processor, prompts, images)
    return model.generate(**inputs, max_new_tokens=5, do_sample=False)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("num_latents", [16, 63, 64, 127, 128, 143, 144])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_exactly_as_many_tokens_as_latents_reach_the_projector(llava, processor, num_latents, strategy):
    llava.config.vision_feature_select_strategy = strategy
    swap(llava, processor, make_encoder(num_latents))
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    expected = num_latents + (strategy == "full")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == expected
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    features = llava.get_image_features(inputs["pixel_values"], vision_feature_layer=-2).pooler_output
    assert features[0].shape == (expected, 64)
    assert llava.config.image_seq_length == expected
    llava(**inputs)


def test_swap_changes_the_answers_image_and_restore_brings_every_bit_back(llava, processor):
    config, text = llava.config.to_dict(), processor.to_dict()
    weights, before = state(llava), llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits
    swapped = swap(llava, processor, make_encoder())
    during = llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits
    assert during.shape == before.shape and not torch.equal(during, before)
    assert {name for name in llava.state_dict() if "vision_tower" not in name} == {
        name for name in weights if "vision_tower" not in name
    }
    restore(swapped)
    assert llava.config.to_dict() == config and processor.to_dict() == text
    assert all(torch.equal(tensor, weights[name]) for name, tensor in llava.state_dict().items())
    assert torch.equal(llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits, before)


def test_a_swapped_model_reads_the_penultimate_latents_of_the_encoder(llava, processor):
    encoder = make_encoder()
    swap(llava, processor, encoder)
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    latents = encoder(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    features = llava.get_image_features(inputs["pixel_values"], vision_feature_layer=-2).pooler_output
    assert torch.equal(features[0], llava.model.multi_modal_projector(latents)[0])


def test_swap_keeps_the_language_model_untouched_and_text_answers_equal(llava, processor):
    text = ["USER: what is a cat ? ASSISTANT:"]
    before = answer(llava, processor, text, [[]])
    swap(llava, processor, make_encoder())
    assert torch.equal(answer(llava, processor, text, [[]]), before)


def test_a_left_padded_batch_answers_like_single_prompts(llava, processor):
    swap(llava, processor, make_encoder())
    prompts = [PROMPT, "USER: <image> what is in the image on the mat ? ASSISTANT:", "USER: what is red ? ASSISTANT:"]
    images = [[PICTURE], [PICTURE.rotate(90)], []]
    together = answer(llava, processor, prompts, images)[:, -5:]
    alone = [answer(llava, processor, [prompt], [image])[0, -5:] for prompt, image in zip(prompts, images, strict=True)]
    assert torch.equal(together, torch.stack(alone))


def test_an_encoder_directory_is_loaded_in_the_projectors_dtype(processor, tmp_path):
    make_encoder().save_pretrained(tmp_path)
    model = make_llava().to(torch.bfloat16)
    swapped = swap(model, processor, tmp_path)
    assert swapped.encoder.dtype == torch.bfloat16
    assert swapped.encoder.focusing.initial_rois.dtype == torch.float32
    assert answer(model, processor).shape[0] == 1


def test_a_second_swap_is_restored_before_the_first(llava, processor):
    first = swap(llava, processor, make_encoder(16))
    second = swap(llava, processor, make_encoder(63))
    with pytest.raises(ValueError, match="later swap must be restored first"):
        restore(first)
    restore(second)
    restore(first)
    with pytest.raises(ValueError, match="restored already"):
        restore(first)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(hidden_size=32), "takes 64 channels but the encoder gives 32"),
        (dict(num_hidden_layers=1), "reads hidden state -3 .* encoder has 2"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_and_nothing_changes(llava, processor, changes, sentence):
    llava.config.vision_feature_layer = -3
    tower, config = llava.model.vision_tower, copy.deepcopy(llava.config.to_dict())
    with pytest.raises(ValueError, match=sentence):
        swap(llava, processor, make_encoder(**changes))
    assert llava.model.vision_tower is tower and llava.config.to_dict() == config
    assert processor.patch_size == 16


def test_another_dtype_is_refused_with_the_way_out(llava, processor):
    with pytest.raises(ValueError, match=r"projector is torch.float32 .* load the encoder with dtype=torch.float32"):
        swap(llava, processor, make_encoder().to(torch.bfloat16))


def test_a_directory_of_something_else_is_refused(llava, processor, tmp_path):
    with pytest.raises(ValueError, match="no encoder at"):
        swap(llava, processor, tmp_path)
    llava.model.vision_tower.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        swap(llava, processor, tmp_path)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("USER: what is in the image ? ASSISTANT:", "holds <image> nowhere but has 1 image"),
        ("USER: <image> <image> what ? ASSISTANT:", "holds <image> twice but has 1 image"),
    ],
)
def test_prompt_and_images_must_agree(processor, prompt, sentence):
    with pytest.raises(ValueError, match=sentence):
        encode_prompts(processor, [prompt], [[PICTURE]])
