"""timm teachers: the library's own features and logits, CLIP towers with QuickGELU, and what is refused."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import randomise

from sf_llava.data.transforms import Preprocessing
from sf_llava.teachers import load_teacher


def timm_model(name, file):
    model = timm.create_model(name)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def test_embeddings_tokens_and_logits_are_timms_own(timm_file, pixels):
    teacher, vit = load_teacher(f"timm:vit_sf_tiny/{timm_file}"), timm_model("vit_sf_tiny", timm_file)
    torch.testing.assert_close(teacher(pixels), vit.forward_features(pixels)[:, 0])
    torch.testing.assert_close(teacher.classify(teacher(pixels)), vit(pixels))
    patches, prefix = vit.forward_intermediates(
        pixels, indices=[0], output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )[0]
    torch.testing.assert_close(teacher.tokens(pixels, -2), torch.cat([prefix, patches], dim=1))
    assert (teacher.num_classes, teacher.projection_dim, teacher.embed_dim) == (7, None, 32)
    assert (teacher.hidden_act, teacher.layer_norm_eps) == ("gelu", 1e-6)
    assert teacher.num_parameters() == sum(parameter.numel() for parameter in vit.parameters())


def test_a_clip_tower_gives_what_is_behind_its_projection(timm_clip_file, pixels):
    teacher = load_teacher(f"timm:vit_sf_tiny_clip/{timm_clip_file}")
    torch.testing.assert_close(teacher(pixels), timm_model("vit_sf_tiny_clip", timm_clip_file)(pixels))
    assert (teacher.num_classes, teacher.projection_dim, teacher.hidden_act) == (0, 7, "quick_gelu")


def test_preprocessing_keeps_timms_crop(timm_file):
    expected = Preprocessing(24, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9)
    assert load_teacher(f"timm:vit_sf_tiny/{timm_file}").preprocessing == expected


def test_a_classifier_of_any_size_loads(timm_file, tmp_path, pixels):
    state = torch.load(timm_file, weights_only=True)
    state["head.weight"], state["head.bias"] = torch.randn(11, 32), torch.randn(11)
    torch.save(state, tmp_path / "weights.pt")
    assert load_teacher(f"timm:vit_sf_tiny/{tmp_path / 'weights.pt'}").num_classes == 11


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_bse_patch16_224/x.pt", "no model 'vit_bse_patch16_224'; close names: .*vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.augregg", "no weights 'augregg'; it has: .*augreg_in21k"),
        ("timm:vit_base_patch16_224", "names no weights; timm has: vit_base.*timm:vit_base_patch16_224/FILE"),
        ("timm:vit_base_patch16_clip_224.openai", "QuickGELU.* write timm:vit_base_patch16_clip_quickgelu_224.openai"),
        ("timm:vit_large_patch14_clip_224.openai/x.pt", "write timm:vit_large_patch14_clip_quickgelu_224.openai/x.pt"),
        ("timm:vit_sf_tiny/nowhere.pt", "nowhere.pt, the weights of .*, is not a file"),
    ],
)
def test_names_that_cannot_work_are_refused_before_anything_is_fetched(name, message, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("tried to build"))
    with pytest.raises(ValueError, match=message):
        load_teacher(name)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit_sf_tiny_map", "attention pools its patches, but it has CLS"),
        ("vit_sf_tiny_avg", "pools with 'avg'"),
        ("vit_sf_tiny_swiglu", r"gated \(SwiGLU\)"),
        ("eva02_tiny_patch14_224", r"it is a Eva: its attention .*RoPE"),
        ("vit_small_patch16_dinov3", r"it is a Eva: its attention .*RoPE"),
        ("naflexvit_base_patch16_siglip", r"NaFlexVit: .*\(NaFlex\)"),
        ("resnet10t", "it is a ResNet"),
    ],
)
def test_models_that_are_no_plain_vit_are_refused_and_say_why(tmp_path, model, message):
    torch.save(timm.create_model(model, num_classes=7).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        load_teacher(f"timm:{model}/{tmp_path / 'weights.pt'}")


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_checkpoint_is_one_clear_error(timm_file, tmp_path, size):
    (tmp_path / "cut.pt").write_bytes(timm_file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"could not be read .*truncated"):
        load_teacher(f"timm:vit_sf_tiny/{tmp_path / 'cut.pt'}")


def test_missing_keys_are_listed(timm_file, tmp_path):
    state = torch.load(timm_file, weights_only=True)
    del state["blocks.1.attn.qkv.bias"]
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"1 missing: blocks.1.attn.qkv.bias"):
        load_teacher(f"timm:vit_sf_tiny/{tmp_path / 'weights.pt'}")


def test_without_a_network_the_error_says_what_to_pass_instead(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"could not be fetched .*timm:vit_tiny_patch16_224.augreg_in21k/FILE"):
        load_teacher("timm:vit_tiny_patch16_224.augreg_in21k")


@pytest.fixture
def timm_dir(timm_file, tmp_path):
    """A directory as timm's hub holds them, of a model that is built with numbers of its own."""
    vit = randomise(timm.create_model("vit_sf_tiny", num_classes=5, init_values=0.1))
    config = {"architecture": "vit_sf_tiny", "num_classes": 5, "model_args": {"init_values": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"tag": "ours"}}))
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    return tmp_path, vit


def test_a_directory_of_timm_is_its_model(timm_dir, pixels):
    directory, vit = timm_dir
    for name in (str(directory), f"timm:{directory}"):
        teacher = load_teacher(name)
        torch.testing.assert_close(teacher.classify(teacher(pixels)), vit(pixels))
        assert teacher.preprocessing == Preprocessing(24, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9)


def edit(directory, **values):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(architecture=7), "none of timm's: it needs `architecture`"),
        (dict(model_args=["x"]), "and `model_args` by name"),
        (dict(architecture="vit_bse"), "no model 'vit_bse'"),
        (dict(architecture="hf-hub:someone/vit"), "no model 'hf-hub:someone/vit'"),
        (dict(model_args={"checkpoint_path": "/x.pt"}), "has no checkpoint_path"),
        (dict(model_args={"embed_dim": "wide"}), "could not build timm:vit_sf_tiny/"),
        (dict(model_args={}), "unexpected: blocks.0.ls1.gamma"),
        (
            dict(architecture="vit_large_patch14_clip_224", pretrained_cfg={"tag": "openai"}),
            "write timm:vit_large_patch14_clip_quickgelu_224/",
        ),
    ],
)
def test_a_directory_that_cannot_be_one_of_timms_says_why(timm_dir, values, message):
    edit(timm_dir[0], **values)
    with pytest.raises(ValueError, match=message):
        load_teacher(f"timm:{timm_dir[0]}")


def test_a_directory_without_weights_says_which_it_looked_for(timm_dir):
    (timm_dir[0] / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights: expected model.safetensors or pytorch_model.bin"):
        load_teacher(str(timm_dir[0]))
