"""SigLIP and DINOv2 of every library: its own hidden states, embeddings, texts and pixels; and what is refused."""

import json

import numpy as np
import open_clip
import pytest
import sentencepiece
import timm
import torch
from PIL import Image
from timm.data import create_transform
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersModel,
    SiglipModel,
    SiglipTokenizer,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from sf_llava.data.transforms import Preprocessing
from sf_llava.teachers import load_teacher, open_clip_teacher

TEXTS = ["a photo of a cat", "Red dog", "a red dog of the " * 5]  # the last is longer than the text towers read
HALF = (0.5, 0.5, 0.5)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("whole", [True, False])
def test_a_siglip_of_transformers_gives_its_own_states_and_embeddings(
    transformers_siglip_dir, transformers_siglip_vision_dir, pixels, whole
):
    path = transformers_siglip_dir if whole else transformers_siglip_vision_dir
    vision = SiglipModel.from_pretrained(path).vision_model if whole else SiglipVisionModel.from_pretrained(path)
    teacher, output = load_teacher(str(path)), vision(pixels, output_hidden_states=True)
    for layer in range(-4, 4):
        torch.testing.assert_close(teacher.tokens(pixels, layer), output.hidden_states[layer])
    torch.testing.assert_close(teacher(pixels), output.pooler_output)
    assert (teacher.use_cls, teacher.num_tokens, teacher.has_text) == (False, 9, whole)
    assert (teacher.hidden_act, teacher.layer_norm_eps, teacher.projection_dim) == ("gelu_pytorch_tanh", 1e-4, None)
    assert teacher.num_parameters() == sum(parameter.numel() for parameter in vision.parameters())


def test_a_siglip_of_transformers_reads_texts_padded_to_its_full_length(transformers_siglip_dir):
    model = SiglipModel.from_pretrained(transformers_siglip_dir)
    tokenizer = AutoTokenizer.from_pretrained(transformers_siglip_dir)
    lower = [text.lower() for text in TEXTS]
    batch = tokenizer(lower, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    expected = model.get_text_features(batch["input_ids"]).pooler_output
    teacher = load_teacher(str(transformers_siglip_dir))
    torch.testing.assert_close(teacher.encode_text(TEXTS), expected)
    torch.testing.assert_close(teacher.encode_text(["dog"]), teacher.encode_text(["dog", *TEXTS])[:1])


def test_texts_are_read_as_siglips_own_tokenizer_writes_them(transformers_siglip_dir, tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(transformers_siglip_dir / file)
    (tmp_path / "corpus.txt").write_text("a photo of the red cat\na photo of the dog\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=26, model_type="unigram",
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    SiglipTokenizer(str(tmp_path / "spiece.model"), model_max_length=12).save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))
    torch.testing.assert_close(
        teacher.encode_text(["A photo, of the CAT!"]), teacher.encode_text(["a photo of the cat"])
    )
    assert type(teacher.tokenizer) is SiglipTokenizer


@pytest.mark.parametrize("registers", [False, True])
def test_a_dinov2_of_transformers_gives_its_own_states_and_embeddings(
    transformers_dinov2_dir, transformers_dinov2_registers_dir, pixels, registers
):
    path, kind = (transformers_dinov2_dir, Dinov2Model)
    if registers:
        path, kind = transformers_dinov2_registers_dir, Dinov2WithRegistersModel
    model, teacher = kind.from_pretrained(path), load_teacher(str(path))
    output = model(pixels, output_hidden_states=True)
    for layer in range(-4, 4):
        state = output.hidden_states[layer]
        expected = torch.cat([state[:, :1], state[:, 5 if registers else 1 :]], dim=1)
        torch.testing.assert_close(teacher.tokens(pixels, layer), expected)
    torch.testing.assert_close(teacher(pixels), output.pooler_output)
    assert (teacher.use_cls, teacher.num_registers) == (True, 4 if registers else 0)
    assert not teacher.has_text and teacher.projection_dim is None and not teacher.num_classes


def test_pixels_are_those_of_transformers_own_processors(transformers_siglip_dir, transformers_dinov2_dir):
    for path in (transformers_siglip_dir, transformers_dinov2_dir):
        processor, teacher = AutoImageProcessor.from_pretrained(path, backend="pil"), load_teacher(str(path))
        for size in ((60, 40), (40, 60), (28, 28), (24, 24), (90, 30)):
            expected = processor(picture(*size), return_tensors="pt")["pixel_values"][0]
            torch.testing.assert_close(teacher.preprocessing(picture(*size)), expected, atol=1e-5, rtol=1e-5)


def test_models_without_a_processor_get_their_familys(
    transformers_siglip_vision_dir, transformers_dinov2_registers_dir
):
    siglip, dinov2 = (load_teacher(str(p)) for p in (transformers_siglip_vision_dir, transformers_dinov2_registers_dir))
    assert siglip.preprocessing == Preprocessing(24, HALF, HALF, resize_mode="squash")
    assert dinov2.preprocessing == Preprocessing(24, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_siglip_of_open_clip_gives_its_own_embeddings_texts_and_pixels(open_clip_siglip_dir, pixels):
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{open_clip_siglip_dir}")
    clip.eval()
    teacher = load_teacher(str(open_clip_siglip_dir))
    torch.testing.assert_close(teacher(pixels), clip.encode_image(pixels))
    tokenizer, lower = AutoTokenizer.from_pretrained(open_clip_siglip_dir), [text.lower() for text in TEXTS]
    batch = tokenizer(lower, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    tokens = batch["input_ids"]
    torch.testing.assert_close(teacher.encode_text(TEXTS), clip.encode_text(tokens))
    for size in ((60, 40), (40, 61), (24, 24)):
        assert torch.equal(teacher.preprocessing(picture(*size)), transform(picture(*size)))
    assert teacher.num_parameters() == sum(parameter.numel() for parameter in clip.visual.parameters())
    assert (teacher.use_cls, teacher.hidden_act) == (False, "gelu_pytorch_tanh")


@pytest.mark.parametrize("family", ["timm_siglip", "timm_dinov2", "timm_dinov2_registers"])
def test_timms_models_give_their_own_states_and_embeddings(timm_files, pixels, family):
    model, file = timm_files[family].removeprefix("timm:").split("/", 1)
    vit = timm.create_model(model, num_classes=0)
    vit.load_state_dict(torch.load(file, weights_only=True))
    teacher, vit = load_teacher(timm_files[family]), vit.eval()
    torch.testing.assert_close(teacher(pixels), vit(pixels))
    for index in range(2):
        asked = {"output_fmt": "NLC", "return_prefix_tokens": family != "timm_siglip", "intermediates_only": True}
        (expected,) = vit.forward_intermediates(pixels, indices=[index], **asked)
        if family != "timm_siglip":
            patches, prefix = expected
            expected = torch.cat([prefix[:, :1], patches], dim=1)
        torch.testing.assert_close(teacher.tokens(pixels, index + 1), expected)
    transform = create_transform((3, 24, 24), interpolation="bicubic", mean=HALF, std=HALF, crop_pct=0.9)
    assert torch.equal(teacher.preprocessing(picture(60, 40)), transform(picture(60, 40)))
    assert (teacher.num_classes, teacher.projection_dim) == (0, None)


def test_timms_squashed_pictures_are_timms_own(timm_files):
    vit = timm.create_model("vit_sf_tiny_siglip", num_classes=0)
    vit.pretrained_cfg["crop_mode"] = "squash"
    from sf_llava.teachers.timm_teacher import TimmTeacher

    transform = create_transform(
        (3, 24, 24), interpolation="bicubic", mean=HALF, std=HALF, crop_pct=0.9, crop_mode="squash"
    )
    ours = TimmTeacher("squashed", vit).preprocessing
    for size in ((60, 40), (40, 61), (24, 24)):
        assert torch.equal(ours(picture(*size)), transform(picture(*size)))


def test_folding_layer_scale_is_exact_to_the_rounding(transformers_dinov2_dir, timm_files):
    # Against products in float64, so that a fold into other rows, or of the weight alone, is seen.
    model = Dinov2Model.from_pretrained(transformers_dinov2_dir)
    state = {name: value.double() for name, value in model.encoder.layer[1].state_dict().items()}
    (dense,) = (name for name in state if name.endswith(("output.dense.weight", "o_proj.weight")))
    block = load_teacher(str(transformers_dinov2_dir)).block_state_dict(1)
    for scale, layer, own in (("layer_scale1", "attn.proj", dense[:-7]), ("layer_scale2", "mlp.fc2", "mlp.fc2")):
        gamma = state[f"{scale}.lambda1"]
        weight = torch.einsum("d,de->de", gamma, state[f"{own}.weight"])
        torch.testing.assert_close(block[f"{layer}.weight"].double(), weight, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(block[f"{layer}.bias"].double(), gamma * state[f"{own}.bias"], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("dinov3_vit", r"'dinov3_vit': its attention turns .*RoPE"),
        ("siglip2", r"'siglip2': its pictures differ in shape \(NaFlex\)"),
        ("vit", r"'vit': known are clip, .*siglip.*dinov2"),
    ],
)
def test_types_that_cannot_be_inherited_are_refused_and_say_why(tmp_path, model_type, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=message):
        load_teacher(str(tmp_path))


def test_a_gated_dinov2_and_a_siglip_without_its_head_are_refused(tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
    Dinov2Model(Dinov2Config(**shape, use_swiglu_ffn=True)).save_pretrained(tmp_path / "gated")
    with pytest.raises(ValueError, match=r"its MLPs are gated \(SwiGLU\)"):
        load_teacher(str(tmp_path / "gated"))
    config = SiglipVisionConfig(**shape, intermediate_size=32, vision_use_head=False)
    SiglipVisionModel(config).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="without the head that pools its tokens"):
        load_teacher(str(tmp_path / "headless"))


@pytest.mark.parametrize("change", [{"size": {"height": 24, "width": 20}}, {"size": {"height": 32, "width": 32}}])
def test_a_processor_that_does_not_fit_the_model_is_refused(transformers_siglip_dir, tmp_path, change):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(transformers_siglip_dir / file)
    values = json.loads((transformers_siglip_dir / "preprocessor_config.json").read_text()) | change
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"resizes to .* takes squares of 24 pixels"):
        load_teacher(str(tmp_path))


def test_a_tokenizer_with_more_words_than_the_text_tower_is_noticed(transformers_siglip_dir, tmp_path):
    for file in transformers_siglip_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    tokenizer = AutoTokenizer.from_pretrained(transformers_siglip_dir)
    tokenizer.add_tokens([f"word{number}" for number in range(30)])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows 32 tokens, its tokenizer 41"):
        load_teacher(str(tmp_path)).encode_text(["a cat"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:PE-Core-B-16/meta", r"timm's vit_pe_core_base_patch16_224, .*Eva: its attention turns .*RoPE"),
        ("open_clip:EVA02-B-16/merged2b_s8b_b131k", r"timm's eva02_base_patch16_clip_224, .*RoPE"),
        ("open_clip:convnext_base/laion400m_s13b_b51k", "timm's convnext_base, .* ConvNeXt"),
    ],
)
def test_open_clips_other_towers_of_timm_are_refused_before_anything_is_fetched(name, message, monkeypatch):
    monkeypatch.setattr(open_clip_teacher, "download_pretrained", lambda tag: pytest.fail("tried to download"))
    with pytest.raises(ValueError, match=message):
        load_teacher(name)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP/webli", "ViT-B-16-SigLIP2/webli", "ViT-SO400M-14-SigLIP-384/webli"])
def test_open_clips_siglips_are_admitted_by_their_configuration(name, monkeypatch):
    monkeypatch.setattr(open_clip_teacher, "download_pretrained", lambda tag: (_ for _ in ()).throw(OSError("no net")))
    with pytest.raises(ValueError, match=r"could not be fetched \(no net\)"):
        load_teacher(f"open_clip:{name}")
