"""A SparseFormer as the native vision tower of LlavaForConditionalGeneration."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from tiny_llava import CHAT_TEMPLATE, make_encoder, make_llava, make_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, pipeline

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava import build_processor, encode_prompts, swap
from sf_llava.model import SparseFormerModel

PICTURE = Image.effect_noise((48, 40), 90).convert("RGB")
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"


@pytest.fixture
def native():
    """A LLaVA built with a SparseFormer tower, and its processor."""
    config = make_encoder(16).config
    return make_llava(SparseFormerConfig(**config.to_dict())), build_processor(
        config, make_tokenizer(), chat_template=CHAT_TEMPLATE
    )


def test_build_takes_the_tower_from_the_config(native):
    model, _ = native
    assert isinstance(model.model.vision_tower, SparseFormerModel)
    assert model.model.vision_tower.config._attn_implementation == "sdpa"


def test_a_training_step_reaches_projector_and_encoder(native):
    model, processor = native
    inputs = encode_prompts(processor, [PROMPT, PROMPT], [[PICTURE], [PICTURE.rotate(90)]])
    loss = model.train()(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.model.vision_tower.early_conv.conv.weight.grad.abs().sum() > 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    assert model(**inputs, labels=inputs["input_ids"]).loss < loss


def test_saving_and_loading_through_auto_classes_keeps_every_logit(native, tmp_path):
    model, processor = native
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is LlavaForConditionalGeneration
    again = encode_prompts(AutoProcessor.from_pretrained(tmp_path, backend="pil"), [PROMPT], [[PICTURE]])
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(again["pixel_values"], inputs["pixel_values"])
    torch.testing.assert_close(loaded(**again).logits, model(**inputs).logits, atol=1e-5, rtol=0)


def test_a_swapped_model_saves_as_an_ordinary_directory(llava, processor, tmp_path):
    swap(llava, processor, make_encoder(63))
    llava.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    loaded, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    again = encode_prompts(AutoProcessor.from_pretrained(tmp_path, backend="pil"), [PROMPT], [[PICTURE]])
    torch.testing.assert_close(loaded(**again).logits, llava(**inputs).logits, atol=1e-5, rtol=0)


def test_the_pipeline_answers(native, tmp_path):
    model, processor = native
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ask = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "what is in the image ?"}]
    reply = ask(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert isinstance(reply[0]["generated_text"], str)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_and_generates_with_rois_in_float32(native, tmp_path, dtype):
    model, processor = native
    model.save_pretrained(tmp_path)
    half = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    tower = half.model.vision_tower
    assert tower.dtype == dtype and tower.focusing.initial_rois.dtype == torch.float32
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    assert half.generate(**inputs, max_new_tokens=4, do_sample=False).shape[0] == 1
    full = model(**inputs).logits
    assert (half(**inputs).logits.float() - full).abs().max() < 0.05 * full.abs().max()


def test_a_halved_llava_keeps_the_towers_rois_in_float32(native):
    model, processor = native
    rois = model.model.vision_tower.focusing.initial_rois.detach().clone()
    half = model.half()
    assert half.model.multi_modal_projector.linear_1.weight.dtype == torch.float16
    assert torch.equal(half.model.vision_tower.focusing.initial_rois, rois) and rois.dtype == torch.float32
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    assert half.generate(**inputs, max_new_tokens=4, do_sample=False).shape[0] == 1


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        {
            "model.vision_tower": "cpu",
            "model.multi_modal_projector": "cpu",
            "model.language_model": "disk",
            "lm_head": "cpu",
        },
    ],
)
def test_a_device_map_places_and_offloads(native, tmp_path, device_map):
    model, processor = native
    model.save_pretrained(tmp_path / "model")
    spread = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    torch.testing.assert_close(spread(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    swapped = swap(spread, processor, make_encoder(63))
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    assert spread.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1
    assert swapped.encoder.device.type == "cpu"


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_llm_keeps_tower_and_projector_whole(native, tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra 'quantisation')")
    from sf_llava.llava.quantisation import quantisation_config

    model, processor = native
    model.save_pretrained(tmp_path)
    small = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=quantisation_config(bits), dtype=torch.bfloat16
    )
    kinds = {name: type(module).__name__ for name, module in small.named_modules()}
    assert kinds["model.language_model.layers.0.mlp.up_proj"] == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    assert kinds["model.multi_modal_projector.linear_1"] == kinds["lm_head"] == "Linear"
    assert kinds["model.vision_tower.cortex.0.mlp.fc1"] == "Linear"
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    assert small.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1
    make_encoder(63).save_pretrained(tmp_path / "encoder")
    swap(small, processor, tmp_path / "encoder")
    inputs = encode_prompts(processor, [PROMPT], [[PICTURE]])
    assert small.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


@pytest.mark.parametrize(
    "code",
    [
        "import sf_llava.llava; model = Llava.from_pretrained(path)",
        "from sf_llava.llava.loading import load_llava; model, _ = load_llava(path)",
        "from sf_llava import SparseFormerModel; model = Llava.from_pretrained(path)",
    ],
)
def test_a_saved_llava_loads_in_a_fresh_process_once_the_package_is_imported(native, tmp_path, code):
    model, processor = native
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = (
        f"from transformers import LlavaForConditionalGeneration as Llava\npath = {str(tmp_path)!r}\n"
        "try:\n    Llava.from_pretrained(path)\n"
        "except (KeyError, ValueError) as error:\n    print('sparseformer' in str(error))\n"
        f"{code}; print(type(model.model.vision_tower).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True", "SparseFormerModel"]
