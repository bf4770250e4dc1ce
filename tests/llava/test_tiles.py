"""LLaVAs that cut a picture into tiles: every tile becomes N latents, the processor and the model agree on how many."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny_hosts import GRID, IMAGE, SIDE, TILED, VIDEO, make_host, make_host_processor, make_student_of
from transformers import AutoModelForImageTextToText, AutoProcessor

from sf_llava.llava import encode_prompts, linear_modules, load_llava, restore, swap, swapped
from sf_llava.llava.costs import count_picture_costs
from sf_llava.llava.tiles import LLAVA_NEXT, count_tokens, count_views, lay_flat
from sf_llava.model.costs import count_multiply_adds

N = 5
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"
SIZES = [(40, 30), (70, 35), (30, 90), (100, 100), (20, 200)]  # width, height: all numbers of tiles: 2, 3, 4


def picture(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 90).convert("RGB")


PICTURES = [picture(*size) for size in SIZES]


@pytest.fixture(params=TILED)
def host(request):
    """A model, its processor and an encoder that fits it."""
    return make_host(request.param), make_host_processor(request.param), make_student_of(request.param, N)


def count(inputs, token: int = IMAGE) -> list[int]:
    return (inputs["input_ids"] == token).sum(dim=1).tolist()


@torch.no_grad()
def logits(model, processor, pictures=PICTURES):
    return model(**encode_prompts(processor, [PROMPT] * len(pictures), [[one] for one in pictures])).logits


def test_tokens_of_a_picture_follow_from_its_views_for_200_sizes(host):
    model, processor, encoder = host
    swap(model, processor, encoder)
    random = np.random.default_rng(0)
    views_seen = set()
    for width, height in random.integers(1, 160, (200, 2)).tolist():
        inputs = processor(images=Image.new("RGB", (width, height)), text="<image>", return_tensors="pt")
        views = inputs["pixel_values"].shape[1]  # the whole picture and its tiles
        views_seen.add(views)
        assert count(inputs) == [views * N + views - 1], (width, height)
        # As the model counts: its tower's tokens, of which it takes as many views as it finds in the size.
        given = [torch.zeros(count_views(height, width, model.config.image_grid_pinpoints, SIDE), N, 64)]
        assert model.model.pack_image_features(given, inputs["image_sizes"])[1].tolist() == count(inputs)
    assert views_seen == {3, 4, 5}


@torch.no_grad()
def test_the_whole_picture_comes_first_then_its_tiles_each_with_a_newline(host):
    model, processor, encoder = host
    swap(model, processor, encoder)
    inputs = encode_prompts(processor, [PROMPT] * len(PICTURES), [[one] for one in PICTURES])
    layer = model.config.vision_feature_layer
    given = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    assert [len(tokens) for tokens in given] == count(inputs)
    for pixels, tokens in zip(inputs["pixel_values"], given, strict=True):
        views = (len(tokens) + 1) // (N + 1)
        states = encoder(pixels[:views], output_hidden_states=True).hidden_states[layer][:, -N:]
        read = model.model.multi_modal_projector(states)
        parts = [read[0]]
        for tile in read[1:]:
            parts += [tile, model.model.image_newline[None]]
        torch.testing.assert_close(tokens, torch.cat(parts), atol=1e-5, rtol=1e-5)
    model(**inputs)


def test_restore_brings_every_bit_and_class_back(host):
    model, processor, encoder = host
    config, text, kinds = model.config.to_dict(), processor.to_dict(), (type(model), type(model.model), type(processor))
    weights, before = {name: value.clone() for name, value in model.state_dict().items()}, logits(model, processor)
    with swapped(model, processor, encoder) as record:
        during = logits(model, processor)
        assert record.num_patches == 16 and during.shape[1] < before.shape[1]
        assert isinstance(model, kinds[0]) and isinstance(processor, kinds[2])
    assert model.config.to_dict() == config and processor.to_dict() == text
    assert (type(model), type(model.model), type(processor)) == kinds
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, processor), before)


def test_one_in_half_precision_inside_peft_is_changed_and_restored():
    model, processor = make_host("next").to(torch.bfloat16), make_host_processor("next")
    inputs = encode_prompts(processor, [PROMPT], [[PICTURES[0]]]).to(torch.bfloat16)
    before = model(**inputs).logits
    wrapped = get_peft_model(model, LoraConfig(target_modules=linear_modules(model, ["llm"])))
    with swapped(wrapped, processor, make_student_of("next", N)) as record:
        assert record.encoder.dtype == torch.bfloat16 and isinstance(model, LLAVA_NEXT.model)
        wrapped(**encode_prompts(processor, [PROMPT], [[PICTURES[0]]]).to(torch.bfloat16))
    assert torch.equal(wrapped(**inputs).logits, before) and not isinstance(model, LLAVA_NEXT.model)


def test_what_does_not_fit_changes_nothing(host):
    model, processor, encoder = host
    config, text, kind = model.config.to_dict(), processor.to_dict(), type(model)
    wrong = make_student_of("next" if not encoder.config.use_cls else "onevision", N)
    for given, of, sentence in (
        (wrong, processor, r"of this LLaVA \(\w+\) has (no )?CLS but the encoder has (one|none): bootstrap"),
        (make_student_of("onevision" if not encoder.config.use_cls else "next", N, hidden_size=32, focusing_size=16),
         processor, "takes 64 channels but the encoder gives 32"),
        (encoder, make_host_processor("llava"), "expected the LLaVA's Llava.+Processor, not LlavaProcessor"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            swap(model, of, given)
    model.config.image_grid_pinpoints = [[SIDE, SIDE + 1]]
    with pytest.raises(ValueError, match=r"hold \[32, 33\], which is no whole number of its tower's squares of 32"):
        swap(model, processor, encoder)
    model.config.image_grid_pinpoints = GRID
    assert model.config.to_dict() == config and processor.to_dict() == text and type(model) is kind


def test_tiles_follow_an_encoder_of_another_size(host):
    model, processor, encoder = host
    larger = make_student_of("onevision" if not encoder.config.use_cls else "next", N, image_size=48)
    with swapped(model, processor, larger):
        assert model.config.image_grid_pinpoints[0] == [48, 96]
        inputs = encode_prompts(processor, [PROMPT], [[PICTURES[3]]])
        assert inputs["pixel_values"].shape == (1, 5, 3, 48, 48) and count(inputs) == [5 * N + 4]
        model(**inputs)
    assert model.config.image_grid_pinpoints == GRID


@torch.no_grad()
def test_pictures_of_different_tiles_in_a_batch_are_read_as_each_alone(host):
    model, processor, encoder = host
    swap(model, processor, encoder)
    together = logits(model, processor)[:, -1]
    for one, row in zip(PICTURES, together, strict=True):
        torch.testing.assert_close(logits(model, processor, [one])[0, -1], row, atol=1e-4, rtol=1e-4)
    prompts = ["what <image> is <image> ?", "a cat ?", PROMPT]
    inputs = encode_prompts(processor, prompts, [PICTURES[:2], [], PICTURES[3:4]])
    alone = encode_prompts(processor, [PROMPT] * 2, [[one] for one in PICTURES[:2]])
    untiled = "batch_num_images" in inputs  # as OneVision shows several pictures of a prompt
    assert count(inputs) == [2 * (N + 1) if untiled else sum(count(alone)), 0, 5 * N + 4]
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 3
    processor.tokenizer.pad_token = None  # as some LLMs' come
    for name, value in encode_prompts(processor, prompts, [PICTURES[:2], [], PICTURES[3:4]]).items():
        if name not in ("input_ids", "pixel_values"):
            assert torch.equal(value, inputs[name]), name


@pytest.mark.parametrize("name", ["next_video", "onevision"])
@torch.no_grad()
def test_a_video_is_n_tokens_a_frame(name):
    model, processor, encoder = make_host(name), make_host_processor(name), make_student_of(name, N)
    video = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), np.uint8)
    before = model(**processor(videos=[video], text=["<video> what ?"], return_tensors="pt")).logits
    with swapped(model, processor, encoder):
        inputs = processor(videos=[video, video[::-1].copy()], text=["<video> ?", "<video> ?"], return_tensors="pt")
        newline = int(name == "onevision")
        assert count(inputs, VIDEO) == [3 * N + newline] * 2
        given = model.get_video_features(inputs["pixel_values_videos"]).pooler_output
        states = encoder(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states
        read = model.model.multi_modal_projector(states[model.config.vision_feature_layer][:, -N:]).flatten(0, 1)
        first = torch.as_tensor(given[0]).flatten(0, -2)
        torch.testing.assert_close(first[: 3 * N], read, atol=1e-5, rtol=1e-5)
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 2
    again = model(**processor(videos=[video], text=["<video> what ?"], return_tensors="pt")).logits
    assert torch.equal(again, before)


def test_a_swapped_model_saves_as_a_directory_that_loads(host, tmp_path):
    model, processor, encoder = host
    model.save_pretrained(tmp_path / "stock")
    model = type(model).from_pretrained(tmp_path / "stock")  # which keeps the names that its weights had
    swap(model, processor, encoder)
    model.save_pretrained(tmp_path / "saved"), processor.save_pretrained(tmp_path / "saved")
    expected = logits(model, processor)
    loaded, with_pil = load_llava(tmp_path / "saved")
    assert (type(loaded), type(with_pil)) == (type(model), type(processor))
    torch.testing.assert_close(logits(loaded, with_pil), expected, atol=1e-5, rtol=0)
    by_name, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values()) and type(by_name) is type(model)
    assert type(AutoProcessor.from_pretrained(tmp_path / "saved")) is type(processor)
    record = swap(loaded, with_pil, make_student_of("onevision" if not encoder.config.use_cls else "next", 7))
    assert logits(loaded, with_pil, PICTURES[3:4]).shape[1] == expected.shape[1] + 5 * (7 - N)
    restore(record)
    torch.testing.assert_close(logits(loaded, with_pil), expected, atol=1e-5, rtol=0)


def test_an_encoder_among_tiles_trains(host):
    model, processor, encoder = host
    swap(model, processor, encoder)
    inputs = encode_prompts(processor, [PROMPT], [[PICTURES[0]]])
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert encoder.focusing.initial_rois.grad.abs().sum() > 0 and model.model.image_newline.grad.abs().sum() > 0


def test_views_are_laid_flat_by_hand():
    views, newline = torch.arange(6.0).reshape(3, 2, 1), torch.tensor([9.0])
    assert lay_flat(views, newline).flatten().tolist() == [0, 1, 2, 3, 9, 4, 5, 9]
    assert lay_flat(views[:1], newline).flatten().tolist() == [0, 1, 9]
    assert [count_tokens(number, 2) for number in (3, 1)] == [8, 3]


def test_the_cost_of_a_picture_counts_all_its_views(host):
    model, processor, _ = host
    inputs = encode_prompts(processor, ["<image>"], [[Image.new("RGB", (8, 8))]])
    views = inputs["pixel_values"].shape[1]
    tower = count_multiply_adds(model.model.vision_tower, SIDE, output_hidden_states=True)
    assert views > 1 and count_picture_costs(model, processor, 3).tower == views * tower
