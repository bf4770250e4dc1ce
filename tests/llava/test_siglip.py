"""LLaVAs with a SigLIP tower: exactly N tokens of a student without CLS, the same hidden state, wrong pairings."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_llava import CHAT_TEMPLATE, WIDTH, make_encoder, make_llava, make_tokenizer
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from sf_llava.bootstrap.inherit import inherit, student_config
from sf_llava.configuration import SparseFormerConfig
from sf_llava.export.features import ImageFeatures
from sf_llava.llava import (
    build_processor,
    count_image_tokens,
    encode_prompts,
    generate_in_place,
    restore,
    swap,
    swapped,
)
from sf_llava.llava.package.tower import SparseFormerVisionTower
from sf_llava.llava.reading import reading_of, see
from sf_llava.llava.reduction import reduced
from sf_llava.llava.tokens import complete_processor
from sf_llava.model import SparseFormerModel
from sf_llava.teachers import load_teacher

PICTURE = Image.effect_noise((70, 50), 90).convert("RGB")
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"
TOWER = dict(
    hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16
)


def make_student(num_latents: int = 16, **changes: object) -> SparseFormerModel:
    fields = dict(use_cls=False, projection_dim=0, hidden_act="gelu_pytorch_tanh", resize_mode="squash")
    return make_encoder(num_latents, **(fields | changes))


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    return make_llava(SiglipVisionConfig(**TOWER), vision_feature_select_strategy="full")


@pytest.fixture
def processor() -> LlavaProcessor:
    return LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 64, "width": 64}),
        make_tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def count(processor, inputs) -> int:
    return int((inputs["input_ids"] == processor.image_token_id).sum())


@pytest.mark.parametrize("num_latents", [1, 16, 63, 64, 182])
def test_exactly_as_many_tokens_as_latents_reach_the_llm(llava, processor, num_latents):
    student = make_student(num_latents)
    swap(llava, processor, student)
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    assert count(processor, inputs) == num_latents == llava.config.image_seq_length
    features = llava.get_image_features(inputs["pixel_values"]).pooler_output
    assert features[0].shape == (num_latents, WIDTH)
    with torch.no_grad():
        states = student(inputs["pixel_values"], output_hidden_states=-2).hidden_states[-2]
        torch.testing.assert_close(features[0], llava.model.multi_modal_projector(states)[0])
        llava(**inputs)


def test_pictures_are_squashed_as_the_llavas_own(llava, processor):
    swap(llava, processor, make_student())
    square = encode_prompts(processor, [PROMPT], [[PICTURE.resize((32, 32), Image.Resampling.BICUBIC)]])["pixel_values"]
    assert torch.equal(encode_prompts(processor, [PROMPT], [[PICTURE]])["pixel_values"], square)


def test_restore_brings_every_bit_back(llava, processor):
    before = llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits
    config, text = llava.config.to_dict(), processor.to_dict()
    restore(swap(llava, processor, make_student()))
    assert llava.config.to_dict() == config and processor.to_dict() == text
    assert torch.equal(llava(**encode_prompts(processor, [PROMPT], [[PICTURE]])).logits, before)


def test_latents_are_read_by_roi_centre_all_of_them(llava, processor):
    with swapped(llava, processor, make_student(9)) as record:
        inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
        assert record.num_patches == 16
        reading = reading_of(llava, 16)
        seen = see(llava, inputs["pixel_values"], reading)
        assert (reading.has_cls, reading.with_cls) == (False, False)
        assert seen.features.shape == (1, 9, WIDTH) and seen.places.shape == (1, 9) and seen.places.max() < 16
        assert generate_in_place(llava, inputs, record.num_patches, max_new_tokens=3, do_sample=False).shape[1] <= 3


def test_a_student_of_the_llavas_tower_gives_its_tower_s_tokens_back(llava, tmp_path):
    # All blocks inherited, the teacher's own tokens for latents: the state that LLaVA reads is the tower's.
    llava.model.vision_tower.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))
    student = SparseFormerModel(student_config(teacher, num_truncated=0)).eval()
    inherit(student, teacher)
    pixels = torch.randn(1, 3, 64, 64)
    _, states = student._run_cortex(teacher.tokens(pixels, 0), {0, 1, 2, 3})
    own = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    for layer in range(-4, 0):
        torch.testing.assert_close(states[layer], own[layer], atol=1e-5, rtol=1e-5)


def test_the_state_behind_the_same_block_is_read_where_a_llava_holds_its_tower_without_the_last(processor):
    # As LLaVAs with a SigLIP do: 26 blocks of 27, no head, read at -1.
    tower = SiglipVisionConfig(**TOWER, vision_use_head=False)
    llava = make_llava(tower, vision_feature_select_strategy="full", vision_feature_layer=-1)
    student = make_student(num_teacher_layers=4)
    record = swap(llava, processor, student)
    assert llava.config.vision_feature_layer == -2
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    states = student(inputs["pixel_values"], output_hidden_states=True).hidden_states
    expected = llava.model.multi_modal_projector(states[-2])
    torch.testing.assert_close(llava.get_image_features(inputs["pixel_values"]).pooler_output[0], expected[0])
    torch.testing.assert_close(ImageFeatures.of_llava(llava, student)(inputs["pixel_values"]), expected)
    restore(record)
    assert llava.config.vision_feature_layer == -1
    torch.testing.assert_close(ImageFeatures.of_llava(llava, student)(inputs["pixel_values"]), expected)
    with pytest.raises(ValueError, match=r"behind block 3, but the encoder's teacher has 2"):
        swap(llava, processor, make_student(num_teacher_layers=2))


def test_a_swapped_model_saves_as_an_ordinary_directory(llava, processor, tmp_path):
    swap(llava, processor, make_student(63))
    llava.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    loaded, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    again = encode_prompts(AutoProcessor.from_pretrained(tmp_path, backend="pil"), [PROMPT], [[PICTURE]])
    torch.testing.assert_close(loaded(**again).logits, llava(**inputs).logits, atol=1e-5, rtol=0)


def test_a_llava_built_with_such_a_tower_trains(tmp_path):
    config = make_student(16).config
    model = make_llava(SparseFormerConfig(**config.to_dict()), vision_feature_select_strategy="full")
    processor = build_processor(config, make_tokenizer(), chat_template=CHAT_TEMPLATE)
    assert processor.vision_feature_select_strategy == "full" and count_image_tokens(config, "full") == 16
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    assert count(processor, inputs) == 16
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.vision_tower.focusing.initial_rois.grad.abs().sum() > 0
    processor.num_additional_image_tokens = 1  # as one that knows of no latents would have it
    complete_processor(model, processor)
    assert count(processor, encode_prompts(processor, [PROMPT], [[PICTURE]])) == 16


def test_its_own_tokens_pooled_are_a_quarter(llava, processor):
    with reduced(llava, processor, "pooled"):
        inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
        assert count(processor, inputs) == 4
        llava(**inputs)


def test_wrong_pairings_are_one_clear_sentence(llava, processor):
    config = llava.config.to_dict()
    with pytest.raises(ValueError, match=r"\(siglip_vision_model\) has no CLS but the encoder has one: bootstrap an"):
        swap(llava, processor, make_encoder())
    with pytest.raises(ValueError, match=r"takes 64 channels but the encoder gives 32"):
        swap(llava, processor, make_student(hidden_size=32, focusing_size=16))
    clip = make_llava()
    with pytest.raises(ValueError, match=r"\(clip_vision_model\) has CLS but the encoder has none: bootstrap an"):
        swap(clip, processor, make_student())
    with pytest.raises(ValueError, match=r"\(clip_vision_model\) has CLS but the encoder has none"):
        ImageFeatures.of_llava(clip, make_student())
    assert llava.config.to_dict() == config
    llava.config.vision_feature_select_strategy = "default"
    with pytest.raises(ValueError, match=r"'default' would drop its first latent for one: expected 'full'"):
        swap(llava, processor, make_student())
    with pytest.raises(ValueError, match="would drop its first latent"):
        build_processor(make_student().config, make_tokenizer(), "default")


def test_the_original_packages_tower_gives_all_latents(tmp_path):
    make_student(16).save_pretrained(tmp_path)
    tower = SparseFormerVisionTower(f"sparseformer:{tmp_path}", SimpleNamespace(mm_vision_select_layer=-2))
    pixels = torch.randn(2, 3, 32, 32)
    expected = tower.vision_tower(pixels, output_hidden_states=-2).hidden_states[-2]
    assert torch.equal(tower(pixels), expected) and tower(pixels).shape == (2, tower.num_patches, WIDTH)
    prepared = tower.image_processor(PICTURE, return_tensors="pt")["pixel_values"]
    squashed = tower.image_processor(PICTURE.resize((32, 32), Image.Resampling.BICUBIC), return_tensors="pt")
    torch.testing.assert_close(prepared, squashed["pixel_values"], atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="has no CLS: expected patch"):
        arguments = SimpleNamespace(mm_vision_select_layer=-2, mm_vision_select_feature="cls_patch")
        SparseFormerVisionTower(f"sparseformer:{tmp_path}", arguments)
