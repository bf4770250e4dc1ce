"""Original LLaVA directories in transformers classes. Parity: test_parity_with_package.py."""

import json
import runpy
import traceback
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", minversion="5", reason="conversion is for transformers 5, not for the overlay")

from tiny_original import TEXT, VISION, WIDTH, write_original
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from sf_llava.configuration import preset
from sf_llava.llava.loading import convert_llava, load_llava
from sf_llava.mini import MINI_LLAVA_DIR
from sf_llava.model import SparseFormerModel

PICTURE = Image.effect_noise((48, 40), 90).convert("RGB")
PROMPT = "USER: <image>\nWhat is shown? ASSISTANT:"


def encode(processor, prompt=PROMPT):
    return processor(images=PICTURE, text=prompt, return_tensors="pt")


@pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded"])
@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
def test_every_layout_loads_and_converts_to_equal_logits(tmp_path, layout, projector):
    path = write_original(tmp_path, layout=layout, projector=projector)
    model, processor = load_llava(path)
    inputs = encode(processor)
    logits = model(**inputs).logits
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 16 == model.config.image_seq_length
    convert_llava(path, tmp_path / "out", dtype=torch.float32)
    with pytest.raises(ValueError, match="no original LLaVA directory"):
        convert_llava(tmp_path / "out", tmp_path / "again")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    again = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert type(stock) is LlavaForConditionalGeneration
    torch.testing.assert_close(stock(**encode(again)).logits, logits, atol=1e-5, rtol=0)
    assert stock.generation_config.suppress_tokens == [processor.image_token_id]
    ours, _ = load_llava(tmp_path / "out")
    torch.testing.assert_close(ours(**inputs).logits, logits, atol=1e-5, rtol=0)


def test_a_linear_projector_is_exact(tmp_path):
    path = write_original(tmp_path)
    model, _ = load_llava(path)
    projector = model.model.multi_modal_projector
    features = torch.randn(2, 5, VISION["hidden_size"])
    expected = torch.nn.functional.linear(features, projector.linear_1.weight, projector.linear_1.bias)
    assert torch.equal(projector(features), expected)
    half = projector.bfloat16()
    features = features.bfloat16()
    expected = torch.nn.functional.linear(features, half.linear_1.weight, half.linear_1.bias)
    assert torch.equal(half(features), expected)


def test_tower_weights_come_from_the_tower_where_the_directory_has_none(tmp_path):
    full, _ = load_llava(write_original(tmp_path / "a"))
    bare, _ = load_llava(write_original(tmp_path / "b", with_tower=False))
    assert all(torch.equal(value, bare.state_dict()[name]) for name, value in full.state_dict().items())
    elsewhere = write_original(tmp_path / "c", with_tower=False, tower_name="towers/of/nobody/no-such-tower")
    other, _ = load_llava(elsewhere, tower=tmp_path / "a" / "tower")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in full.state_dict().items())
    with pytest.raises(ValueError, match=r"no-such-tower .* name a local copy"):
        load_llava(elsewhere)


def test_start_and_end_tokens_enclose_the_image(tmp_path):
    model, processor = load_llava(write_original(tmp_path, start_end=True))
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
    prompt = processor.apply_chat_template(message, add_generation_prompt=True)
    assert prompt.endswith("questions. USER: <im_start><image><im_end>\nWhat is shown? ASSISTANT:")
    ids = encode(processor, prompt)["input_ids"][0].tolist()
    start, end = processor.tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
    assert (start, end, processor.image_token_id) == (360, 361, 362)
    assert ids.index(end) - ids.index(start) == 17
    assert model.get_input_embeddings().weight.shape == (363, WIDTH)


def test_text_comes_back_from_its_ids(tmp_path):
    _, processor = load_llava(write_original(tmp_path))
    ids = processor.tokenizer(TEXT)["input_ids"]
    assert ids[0] == 1 and processor.tokenizer.decode(ids, skip_special_tokens=True) == TEXT


def test_half_precision_keeps_rotary_frequencies(tmp_path):
    path = write_original(tmp_path)
    model, processor = load_llava(path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.generate(**encode(processor), max_new_tokens=3, do_sample=False).shape[0] == 1


def test_pad_to_square_is_kept(tmp_path):
    _, processor = load_llava(write_original(tmp_path, image_aspect_ratio="pad"))
    wide = Image.new("RGB", (64, 16), (255, 0, 0))
    pixels = processor.image_processor(wide, return_tensors="pt")["pixel_values"][0]
    assert pixels[:, 0].abs().max() < 0.02 and pixels[0, 16].min() > 1  # padded with the mean colour


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(image_aspect_ratio="anyres"), "anyres and spatial merging"),
        (dict(mm_patch_merge_type="spatial_unpad"), "anyres and spatial merging"),
        (dict(mm_projector_type="mlp3x_gelu"), "unknown mm_projector_type 'mlp3x_gelu'; supported: linear, mlp2x_gelu"),
        (dict(model_type="llava_mpt"), "not model_type 'llava_mpt'"),
        (dict(mm_hidden_size=32), "takes 32 channels but the tower gives 64"),
        (dict(mm_projector_type="mlp2x_gelu"), "missing: model.multi_modal_projector"),
    ],
)
def test_a_llava_that_cannot_be_is_one_clear_sentence(tmp_path, change, sentence):
    path = write_original(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=sentence):
        load_llava(path)


@pytest.mark.parametrize("name", ["", "no/such/folder"])
def test_a_place_without_a_llava_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=r"no LLaVA at .*: "):
        load_llava(tmp_path / name)


def test_a_truncated_config_names_the_file(tmp_path):
    path = write_original(tmp_path)
    (path / "config.json").write_text('{"mm_vision_tower": ')
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        load_llava(path)


def test_the_script_converts_and_says_what(tmp_path, capsys):
    path = write_original(tmp_path)
    main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "convert.py"))["main"]
    main(["llava", str(path), str(tmp_path / "out"), "--dtype", "bf16"])
    assert "LLaVA with 16 tokens an image, tower width 64, LLM width 96" in capsys.readouterr().out
    model, _ = load_llava(tmp_path / "out", dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no original LLaVA directory"):
        main(["llava", str(tmp_path / "out"), str(tmp_path / "again")])


def test_adapters_alone_are_called_adapters(tmp_path):
    path = write_original(tmp_path, layout="bin")
    (path / "pytorch_model.bin").unlink()
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/vicuna"}))
    torch.save({}, path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"LoRA adapters .* of the model somebody/vicuna: merge them into it first"):
        convert_llava(path, tmp_path / "out")


@pytest.mark.parametrize("output", ["llava-tiny", "tower", ".", "llava-tiny/out"])
def test_neither_the_source_nor_its_tower_is_replaced(tmp_path, output):
    path = write_original(tmp_path)
    with pytest.raises(ValueError, match="what is read"):
        convert_llava(path, tmp_path / output)
    assert (path / "model.safetensors").is_file() and (tmp_path / "tower" / "model.safetensors").is_file()


def test_a_tower_without_some_of_its_weights_is_refused(tmp_path):
    path = write_original(tmp_path, with_tower=False)
    state = load_file(tmp_path / "tower" / "model.safetensors")
    name = next(iter(state))
    save_file({key: value for key, value in state.items() if key != name}, tmp_path / "tower" / "model.safetensors")
    with pytest.raises(ValueError, match="lacks weights of the vision tower"):
        load_llava(path)


def test_a_sparseformer_given_as_a_clip_tower_says_how_to_name_it(tmp_path):
    path = write_original(tmp_path)
    SparseFormerModel(preset("sf-mini", num_hidden_layers=1)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"is a SparseFormer: name it sparseformer:"):
        load_llava(path, tower=tmp_path / "encoder")


@pytest.mark.parametrize(
    "change",
    [
        *(dict(vocab_size=None), dict(num_hidden_layers=10**9), dict(hidden_size="96"), dict(num_attention_heads=0)),
        *(dict(mm_hidden_size="wide"), dict(mm_vision_select_layer="last"), dict(mm_vision_tower=None)),
        *(dict(mm_vision_tower=["a"]), dict(rms_norm_eps="small"), dict(pad_token_id="none"), dict(rope_scaling=3)),
    ],
    ids=str,
)
def test_values_that_lie_are_one_sentence_or_ignored(tmp_path, change):
    path = write_original(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    try:
        load_llava(path)
    except ValueError as error:
        assert "sf_llava" in traceback.extract_tb(error.__traceback__)[-1].filename
        assert len(str(error).split()) > 4


def test_a_tower_named_for_a_llava_that_holds_its_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds its vision tower itself"):
        load_llava(MINI_LLAVA_DIR, tower=tmp_path)


def test_all_latents_of_a_tower_without_cls_are_read(tmp_path):
    fields = dict(hidden_size=VISION["hidden_size"], focusing_size=32, num_attention_heads=2, projection_dim=0)
    encoder = SparseFormerModel(preset("sf-mini", **fields, num_latents=9, use_cls=False, resize_mode="squash"))
    encoder.save_pretrained(tmp_path / "encoder")
    name = f"sparseformer:{tmp_path / 'encoder'}"
    model, processor = load_llava(write_original(tmp_path, with_tower=False, tower_name=name))
    inputs = encode(processor)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 9 == model.config.image_seq_length
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    squashed = processor.image_processor(PICTURE.resize((64, 64), Image.Resampling.BICUBIC), return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], squashed["pixel_values"])
    states = encoder.eval()(inputs["pixel_values"], output_hidden_states=-2).hidden_states[-2]
    expected = model.model.multi_modal_projector(states)
    torch.testing.assert_close(model.get_image_features(inputs["pixel_values"]).pooler_output[0], expected[0])
