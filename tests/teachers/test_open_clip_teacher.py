"""open_clip teachers: the library's own embeddings, QuickGELU, and what is refused."""

import json
import shutil
import time

import open_clip
import pytest
import torch
from tiny_models import randomise
from torch import nn

from sf_llava.data.transforms import Preprocessing
from sf_llava.teachers import load_teacher, open_clip_teacher
from sf_llava.zero_shot.scoring import zero_shot_classifier


def local_model(directory):
    return open_clip.create_model(f"local-dir:{directory}")


def test_embeddings_and_texts_are_open_clips_own(open_clip_dir, pixels):
    teacher, clip = load_teacher(str(open_clip_dir)), local_model(open_clip_dir)
    torch.testing.assert_close(teacher(pixels), clip.encode_image(pixels))
    texts = ["a photo of a cat", "a dog"]
    tokens = open_clip.get_tokenizer("tiny")(texts)
    torch.testing.assert_close(teacher.encode_text(texts), clip.encode_text(tokens))
    assert teacher.hidden_act == "quick_gelu" and teacher.layer_norm_eps == 1e-5


def test_tokens_are_open_clips_intermediates(open_clip_dir, pixels):
    out = local_model(open_clip_dir).visual.forward_intermediates(
        pixels, indices=[0], output_fmt="NLC", output_extra_tokens=True
    )
    expected = torch.cat([out["image_intermediates_prefix"][0], out["image_intermediates"][0]], dim=1)
    torch.testing.assert_close(load_teacher(str(open_clip_dir)).tokens(pixels, -2), expected)


def test_preprocessing_is_the_directorys(open_clip_dir):
    expected = Preprocessing(24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    assert load_teacher(f"open_clip:{open_clip_dir}").preprocessing == expected


def test_the_zero_shot_classifier_is_open_clips_own(open_clip_dir):
    names, templates = ["cat", "grey whale", "dog"], [lambda name: f"a photo of a {name}.", lambda name: f"the {name}."]
    expected = open_clip.build_zero_shot_classifier(
        local_model(open_clip_dir), open_clip.get_tokenizer("tiny"), names, templates
    )
    prompts = [template("{}") for template in templates]
    teacher = load_teacher(str(open_clip_dir))
    torch.testing.assert_close(zero_shot_classifier(teacher.encode_text, names, prompts), expected.T)


def test_only_the_image_tower_is_counted(open_clip_dir):
    expected = sum(parameter.numel() for parameter in local_model(open_clip_dir).visual.parameters())
    assert load_teacher(str(open_clip_dir)).num_parameters() == expected


class Tree(nn.Module):
    """Parameters under dotted names and nothing else, like OpenAI's archives (scripting open_clip adds a mask)."""

    def __init__(self, parameters: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name in dict.fromkeys(name.partition(".")[0] for name in parameters):
            below = {key.partition(".")[2]: value for key, value in parameters.items() if key.split(".")[0] == name}
            if "" in below:
                self.register_parameter(name, nn.Parameter(below[""]))
            else:
                self.add_module(name, Tree(below))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def openai_files(open_clip_models, tmp_path):
    """The same weights as a TorchScript archive, OpenAI's format, and as a plain state dict."""
    clip = randomise(open_clip.CLIP(**open_clip.get_model_config("tiny-openai-quickgelu")))
    torch.jit.script(Tree(clip.state_dict())).save(tmp_path / "archive.pt")
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    return tmp_path


def test_openai_archives_load_with_quick_gelu_only(openai_files, pixels):
    teacher = load_teacher(f"open_clip:tiny-openai-quickgelu/{openai_files / 'archive.pt'}")
    same = load_teacher(f"open_clip:tiny-openai-quickgelu/{openai_files / 'weights.pt'}")
    assert teacher.hidden_act == "quick_gelu"
    assert torch.equal(teacher(pixels), same(pixels))
    with pytest.raises(ValueError, match=r"trained with QuickGELU .*OpenAI's.* write open_clip:tiny-openai-quickgelu/"):
        load_teacher(f"open_clip:tiny-openai/{openai_files / 'archive.pt'}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-16/openai", "trained with QuickGELU .* write open_clip:ViT-B-16-quickgelu/openai"),
        ("open_clip:ViT-L-14/metaclip_400m", "write open_clip:ViT-L-14-quickgelu/metaclip_400m"),
        ("open_clip:ViT-B-61/openai", "no model 'ViT-B-61'; close names: .*ViT-B-16"),
        ("open_clip:ViT-B-16/openay", "'openay' is neither a tag of ViT-B-16 nor a file; its tags are: openai"),
        ("open_clip:ViT-B-16", "names no weights; its tags are: openai"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "CoCa"),
        ("open_clip:RN50-quickgelu/openai", "ResNet"),
    ],
)
def test_names_that_cannot_work_are_refused_before_anything_is_fetched(name, message, monkeypatch):
    monkeypatch.setattr(open_clip_teacher, "download_pretrained", lambda tag: pytest.fail("tried to download"))
    with pytest.raises(ValueError, match=message):
        load_teacher(name)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny-attn-pool", "attentional pooling"),
        ("tiny-avg-pool", "pools with 'avg'"),
        ("tiny-patch-dropout", "patch dropout"),
        ("tiny-qk-norm", "not plain"),
    ],
)
def test_models_that_are_no_plain_vit_are_refused_and_say_why(open_clip_models, tmp_path, model, message):
    clip = open_clip.CLIP(**open_clip.get_model_config(model))
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        load_teacher(f"open_clip:{model}/{tmp_path / 'weights.pt'}")


def test_a_file_whose_config_disagrees_on_quick_gelu_is_refused(open_clip_models, open_clip_dir):
    with pytest.raises(ValueError, match=r"open_clip_config.json beside the file.* write open_clip:tiny-quickgelu/"):
        load_teacher(f"open_clip:tiny/{open_clip_dir / 'open_clip_pytorch_model.bin'}")
    assert load_teacher(f"open_clip:tiny-quickgelu/{open_clip_dir / 'open_clip_pytorch_model.bin'}").has_text


def test_a_resolution_that_differs_is_an_error_not_an_interpolation(open_clip_models):
    with pytest.raises(ValueError, match=r"visual.positional_embedding \(10, 32\) instead of \(17, 32\)"):
        load_teacher(f"open_clip:tiny-336/{open_clip_models / 'weights.pt'}")


def test_missing_and_unexpected_keys_are_listed(open_clip_models, tmp_path):
    state = torch.load(open_clip_models / "weights.pt", weights_only=True)
    state["visual.extra"] = state.pop("visual.proj")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"1 missing: visual.proj; 1 unexpected: visual.extra"):
        load_teacher(f"open_clip:tiny/{tmp_path / 'weights.pt'}")


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_a_truncated_checkpoint_is_one_clear_error(open_clip_models, tmp_path, size):
    data = (open_clip_models / "weights.pt").read_bytes()
    assert len(data) > 50_000
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(ValueError, match=rf"{name} could not be read .*truncated"):
            load_teacher(f"open_clip:tiny/{tmp_path / name}")


class Runs:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (pytest.fail, ("arbitrary code ran",))


def test_pickled_code_in_a_checkpoint_does_not_run(open_clip_models, tmp_path):
    torch.save({"state_dict": Runs()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="could not be read"):
        load_teacher(f"open_clip:tiny/{tmp_path / 'weights.pt'}")


def test_without_a_network_the_error_says_what_to_pass_instead(monkeypatch):
    def fail(tag):
        raise RuntimeError("cannot connect")

    monkeypatch.setattr(open_clip_teacher, "download_pretrained", fail)
    with pytest.raises(ValueError, match=r"ViT-B-32 could not be fetched \(cannot connect\).*open_clip:ViT-B-32/FILE"):
        load_teacher("open_clip:ViT-B-32/laion2b_e16")


def test_broken_directories_say_what_they_lack(open_clip_dir, tmp_path):
    with pytest.raises(ValueError, match=r"holds no open_clip_config.json"):
        load_teacher(f"open_clip:{tmp_path}")
    shutil.copy(open_clip_dir / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds no weights; expected one of open_clip_model.safetensors"):
        load_teacher(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(ValueError, match="lacks model_cfg"):
        load_teacher(str(tmp_path))


def test_gelu_and_quick_gelu_models_differ(open_clip_models, pixels):
    file = open_clip_models / "weights.pt"
    plain, quick = load_teacher(f"open_clip:tiny/{file}"), load_teacher(f"open_clip:tiny-quickgelu/{file}")
    assert (plain.hidden_act, quick.hidden_act) == ("gelu", "quick_gelu")
    assert not torch.allclose(plain(pixels), quick(pixels), atol=1e-4)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("vision_cfg", {"layers": 10**9}),
        ("vision_cfg", {"layers": "12"}),
        ("text_cfg", {"layers": -1}),
        ("vision_cfg", {"width": 10**8}),
        ("vision_cfg", {"width": "wide"}),
        ("vision_cfg", {"patch_size": 0}),
        ("vision_cfg", {"unknown": 1}),
        ("text_cfg", {"vocab_size": 10**12}),
        ("text_cfg", {"context_length": None}),
        ("text_cfg", {"hf_model_name": "./nowhere"}),
    ],
)
def test_a_configuration_that_lies_is_one_sentence_at_once(open_clip_dir, tmp_path, part, change):
    path = shutil.copytree(open_clip_dir, tmp_path / "copy")
    config = json.loads((path / "open_clip_config.json").read_text())
    config["model_cfg"][part] |= change
    (path / "open_clip_config.json").write_text(json.dumps(config))
    began = time.process_time()
    with pytest.raises(ValueError, match=r"its (vision|text)_cfg has layers|cannot build|does not fit|could not be"):
        load_teacher(str(path))
    assert time.process_time() - began < 10


def test_a_configuration_with_a_byte_order_mark_is_read(open_clip_dir, tmp_path):
    path = shutil.copytree(open_clip_dir, tmp_path / "copy")
    text = (path / "open_clip_config.json").read_bytes()
    (path / "open_clip_config.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert load_teacher(str(path)).hidden_act == "quick_gelu"


def test_weights_that_are_nan_are_refused(open_clip_models, tmp_path):
    state = torch.load(open_clip_models / "weights.pt", weights_only=True)
    state["visual.proj"][0, 0] = float("nan")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"NaN or infinite: visual\.proj"):
        load_teacher(f"open_clip:tiny/{tmp_path / 'weights.pt'}")
