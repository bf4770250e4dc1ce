"""Swapping a SparseFormer into a loaded LLaVA and out again."""

import copy
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from tiny_llava import make_encoder, make_llava
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from sf_llava.devices import DTYPES
from sf_llava.llava import encode_prompts, generate_in_place, restore, swap, swapped
from sf_llava.llava.positions import embed_in_place

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


def test_an_elastic_encoder_is_put_in_with_any_number_of_its_latents(llava, processor):
    encoder = make_encoder(16, num_latents_range=(8, 32))
    for count in (8, 11, 32):
        with swapped(llava, processor, encoder, count) as record:
            inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
            assert (inputs["input_ids"] == processor.image_token_id).sum() == count
            read = llava.get_image_features(inputs["pixel_values"], vision_feature_layer=-2).pooler_output[0]
            wanted = encoder(inputs["pixel_values"], output_hidden_states=-2, num_latents=count).hidden_states[-2]
            assert torch.equal(read, llava.model.multi_modal_projector(wanted[0, 1:]))
            assert record.encoder.config.num_latents == llava.config.vision_config.num_latents == count
    assert encoder.config.num_latents == 16
    before = llava.model.vision_tower
    for wrong, count in ((encoder, 33), (make_encoder(16), 8)):
        with pytest.raises(ValueError, match=f"{count} latents: this encoder was trained with"):
            swap(llava, processor, wrong, count)
    assert llava.model.vision_tower is before


def test_swap_changes_the_answers_image_and_restore_brings_every_bit_back(llava, processor):
    config, text = llava.config.to_dict(), processor.to_dict()
    weights, before = state(llava), llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits
    record = swap(llava, processor, make_encoder())
    during = llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits
    assert during.shape == before.shape and not torch.equal(during, before)
    assert {name for name in llava.state_dict() if "vision_tower" not in name} == {
        name for name in weights if "vision_tower" not in name
    }
    restore(record)
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
    record = swap(model, processor, tmp_path)
    assert record.encoder.dtype == torch.bfloat16
    assert record.encoder.focusing.initial_rois.dtype == torch.float32
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_encoder_of_another_precision_is_read_in_the_models_and_keeps_its_own(processor, dtype):
    encoder, model = make_encoder(), make_llava().to(dtype)
    before = state(encoder)
    record = swap(model, processor, encoder)
    assert answer(model, processor).shape[0] == 1
    tower = model.model.vision_tower
    assert tower is record.encoder and tower.dtype == dtype
    assert tower.focusing.initial_rois.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    pixels = encode_prompts(processor, [PROMPT], [[PICTURE]])["pixel_values"]
    seen = [each(pixels, output_hidden_states=-2).hidden_states[-2].float() for each in (tower, encoder)]
    torch.testing.assert_close(*seen, atol=0.1, rtol=0.1)
    restore(record)
    for name, tensor in encoder.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_tower_that_is_out_follows_the_models_casts(llava, processor, dtype):
    expected = state(copy.deepcopy(llava).to(dtype))
    record = swap(llava, processor, make_encoder())
    llava.to(dtype).train()
    restore(record)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in llava.state_dict().items())
    assert llava.model.vision_tower.training
    assert answer(llava, processor).shape[0] == 1


def test_a_model_cast_there_and_back_has_its_tower_bit_for_bit(llava, processor):
    tower = state(llava.model.vision_tower)
    record = swap(llava, processor, make_encoder())
    llava.half().float()
    restore(record)
    assert all(torch.equal(tensor, tower[name]) for name, tensor in llava.model.vision_tower.state_dict().items())


def test_nested_swaps_follow_too(llava, processor):
    first = swap(llava, processor, make_encoder(16))
    second = swap(llava, processor, make_encoder(63))
    llava.to(torch.bfloat16)
    restore(second)
    answer(llava, processor)
    restore(first)
    answer(llava, processor)


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_a_llava_quantised_with_its_projector_is_swapped(processor, tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="quantises the LLaVA")
    make_llava().save_pretrained(tmp_path / "llava")
    make_encoder().save_pretrained(tmp_path / "encoder")
    chosen = {4: dict(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32), 8: dict(load_in_8bit=True)}[bits]
    model = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "llava", quantization_config=BitsAndBytesConfig(**chosen), dtype=torch.float32
    )
    assert not model.model.multi_modal_projector.linear_1.weight.is_floating_point()
    before = answer(model, processor)
    record = swap(model, processor, tmp_path / "encoder")
    assert record.encoder.dtype == torch.float32
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    read = model.get_image_features(inputs["pixel_values"], vision_feature_layer=-2).pooler_output[0]
    latents = make_encoder()(inputs["pixel_values"], output_hidden_states=-2).hidden_states[-2][:, 1:]
    torch.testing.assert_close(read, model.model.multi_modal_projector(latents)[0])
    answer(model, processor)
    generate_in_place(model, inputs, 16, max_new_tokens=2)
    restore(record)
    assert torch.equal(answer(model, processor), before)


def wrap_in_peft(model, **options):
    peft = pytest.importorskip("peft", reason="wraps the model in adapters")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], **options))


@pytest.mark.parametrize(
    "wrap",
    [lambda model: torch.compile(model, backend="eager"), torch.nn.DataParallel, wrap_in_peft],
    ids=["compile", "DataParallel", "PEFT"],
)
def test_a_wrapped_llava_is_swapped_inside_its_wrapper(processor, wrap):
    plain, tools = make_llava(), copy.deepcopy(processor)
    inner = make_llava()
    model = wrap(inner)
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    before = model(**inputs).logits
    swap(plain, tools, make_encoder())
    record = swap(model, processor, make_encoder())
    during = encode_prompts(processor, [PROMPT], [[PICTURE]])
    torch.testing.assert_close(model(**during).logits, plain(**during).logits)
    assert generate_in_place(model, during, 16, max_new_tokens=2).shape[0] == 1
    restore(record)
    torch.testing.assert_close(model(**inputs).logits, before)


def test_wrappers_that_cannot_be_looked_through_are_named(llava, processor):
    class Tokens(torch.nn.Module):
        peft_config: ClassVar = {"default": SimpleNamespace(is_prompt_learning=True)}

        def get_base_model(self):
            return llava

    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = llava

    for model, sentence in (
        (Tokens(), "Tokens with virtual tokens"),
        (Mine(), "not Mine: take the LLaVA out of this wrapper"),
        (llava.model, "expected one of LlavaForConditionalGeneration, .*, not LlavaModel"),
        (None, "not None"),
    ):
        with pytest.raises(ValueError, match=sentence):
            swap(model, processor, make_encoder())
    with pytest.raises(ValueError, match="a SparseFormerModel or the directory of one, not CLIPVisionModel"):
        swap(llava, processor, llava.model.vision_tower)


def test_a_tower_compiled_after_the_swap_is_restored(llava, processor):
    record = swap(llava, processor, make_encoder())
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    expected = generate_in_place(llava, inputs, 16, max_new_tokens=4)
    llava.model.vision_tower = torch.compile(llava.model.vision_tower, backend="eager")
    assert torch.equal(generate_in_place(llava, inputs, 16, max_new_tokens=4), expected)
    restore(record)
    assert llava.model.vision_tower is record.tower


def test_a_tower_that_peft_trains_a_copy_of_is_read_as_that_copy_and_not_dropped(llava, processor):
    record = swap(llava, processor, make_encoder())
    model = wrap_in_peft(llava, modules_to_save=["vision_tower"])
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    plain = embed_in_place(model, inputs, 16).inputs_embeds
    with torch.no_grad():
        llava.model.vision_tower.modules_to_save["default"].cls_token.add_(1)
    assert not torch.equal(embed_in_place(model, inputs, 16).inputs_embeds, plain)
    with pytest.raises(ValueError, match="inside ModulesToSaveWrapper, which holds trained weights of its own"):
        restore(record)
    model.merge_and_unload()
    with pytest.raises(ValueError, match=r"set record\.model\.model\.vision_tower = record\.encoder"):
        restore(record)
    record.model.model.vision_tower = record.encoder
    restore(record)
    assert llava.model.vision_tower is record.tower


def test_a_model_spread_by_accelerate_gets_its_own_hooks_back(llava, processor):
    before = answer(llava, processor)
    cpu_offload(llava, torch.device("cpu"))
    encoder = make_encoder()
    record = swap(llava, processor, encoder)
    answer(llava, processor)
    restore(record)
    assert not hasattr(encoder, "_hf_hook") and torch.equal(answer(llava, processor), before)


def test_a_directory_of_something_else_is_refused(llava, processor, tmp_path):
    with pytest.raises(ValueError, match="no encoder at"):
        swap(llava, processor, tmp_path)
    llava.model.vision_tower.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of type 'clip_vision_model'"):
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


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_users_own_half_precision_model_looks_through_the_encoder_for_a_while(dtype, llava, processor, tmp_path):
    llava.to(DTYPES[dtype]).save_pretrained(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype="auto").eval()
    tower, image = model.model.vision_tower, Image.new("RGB", (60, 40), "red")
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    with swapped(model, processor, make_encoder(16)) as record:
        assert model.model.vision_tower is record.encoder and record.encoder.dtype == model.dtype
        inputs = processor(images=image, text="USER: <image> what ? ASSISTANT:", return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
        for given in (inputs, inputs.to(model.device, model.dtype)):  # pixels in float32, and as the model's weights
            assert model.generate(**given, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    assert model.model.vision_tower is tower
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_the_old_tower_comes_back_whatever_ends_the_block(llava, processor):
    tower, tokens = llava.model.vision_tower, processor.num_additional_image_tokens
    with pytest.raises(KeyError), swapped(llava, processor, make_encoder(16)):
        raise KeyError("a fault of the user's own")
    assert llava.model.vision_tower is tower and processor.num_additional_image_tokens == tokens
