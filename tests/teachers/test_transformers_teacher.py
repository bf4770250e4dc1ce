"""transformers teachers: the library's own hidden states and features, strict loading, clear errors."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

from sf_llava.configuration import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from sf_llava.data.transforms import Preprocessing
from sf_llava.teachers import load_teacher


def test_tokens_and_embeddings_are_transformers_own(transformers_dir, pixels):
    teacher, clip = load_teacher(f"transformers:{transformers_dir}"), CLIPModel.from_pretrained(transformers_dir)
    hidden_states = clip.vision_model(pixels, output_hidden_states=True).hidden_states
    assert len(hidden_states) == teacher.num_hidden_layers + 1
    for layer in range(-len(hidden_states), len(hidden_states)):
        torch.testing.assert_close(teacher.tokens(pixels, layer), hidden_states[layer])
    torch.testing.assert_close(teacher(pixels), clip.get_image_features(pixels).pooler_output)
    assert (teacher.hidden_act, teacher.layer_norm_eps) == ("silu", 1e-4)
    image = [*clip.vision_model.parameters(), clip.visual_projection.weight]
    assert teacher.num_parameters() == sum(parameter.numel() for parameter in image)


def test_texts_are_transformers_own(transformers_dir):
    clip, tokenizer = CLIPModel.from_pretrained(transformers_dir), AutoTokenizer.from_pretrained(transformers_dir)
    texts = ["a photo of a cat", "dog", "a red dog of the " * 5]  # the last is longer than the model reads
    expected = []
    for text in texts:
        batch = tokenizer([text], truncation=True, max_length=12, return_tensors="pt")
        expected.append(clip.get_text_features(batch["input_ids"]).pooler_output)
    torch.testing.assert_close(load_teacher(str(transformers_dir)).encode_text(texts), torch.cat(expected))


def test_a_bare_vision_tower_is_a_teacher_without_text(transformers_vision_dir, pixels):
    teacher = load_teacher(str(transformers_vision_dir))
    model = CLIPVisionModelWithProjection.from_pretrained(transformers_vision_dir)
    torch.testing.assert_close(teacher(pixels), model(pixels).image_embeds)
    assert not teacher.has_text and teacher.hidden_act == "quick_gelu"


def test_preprocessing_is_read_and_defaults_to_clips(transformers_dir, transformers_vision_dir):
    own = Preprocessing(24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load_teacher(str(transformers_dir)).preprocessing == own
    default = Preprocessing(24, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    assert load_teacher(str(transformers_vision_dir)).preprocessing == default


@pytest.fixture
def copy(transformers_dir, tmp_path):
    """A copy of the model directory that a test may spoil."""
    return shutil.copytree(transformers_dir, tmp_path / "copy")


def test_missing_unexpected_and_misshaped_keys_are_errors(copy):
    state = load_file(copy / "model.safetensors")
    projection = state.pop("visual_projection.weight")

    def save(**changes: torch.Tensor) -> None:
        save_file({**state, **changes}, copy / "model.safetensors", {"format": "pt"})

    save()
    with pytest.raises(ValueError, match=r"1 missing: visual_projection.weight"):
        load_teacher(str(copy))
    save(**{"visual_projection.weight": projection, "extra": torch.ones(2)})
    with pytest.raises(ValueError, match=r"1 unexpected: extra"):
        load_teacher(str(copy))
    save(**{"visual_projection.weight": projection[:3].clone()})
    with pytest.raises(ValueError, match=r"1 of another shape: visual_projection.weight"):
        load_teacher(str(copy))


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_a_truncated_checkpoint_is_one_clear_error(copy, size):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"could not be read .*truncated"):
        load_teacher(str(copy))


def test_what_is_missing_in_a_directory_is_said(copy, tmp_path):
    (copy / "tokenizer.json").unlink()
    teacher = load_teacher(str(copy))
    with pytest.raises(ValueError, match=r"has no tokenizer; add one of tokenizer.json, vocab.json"):
        teacher.encode_text(["a cat"])
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights: expected one of model.safetensors"):
        load_teacher(str(copy))
    with pytest.raises(ValueError, match=r"neither config.json nor open_clip_config.json"):
        load_teacher(str(tmp_path))
    with pytest.raises(ValueError, match="is not a directory"):
        load_teacher(f"transformers:{tmp_path / 'nowhere'}")


def test_a_tokenizer_of_another_model_is_noticed(copy):
    CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "cat</w>": 2}).save_pretrained(copy)
    with pytest.raises(ValueError, match=r"ends texts by 3, its tokenizer by 1"):
        load_teacher(str(copy)).encode_text(["cat"])


@pytest.mark.parametrize("model_type", ["vit", "sparseformer", "llava"])
def test_other_models_are_refused_by_their_type(copy, model_type):
    config = json.loads((copy / "config.json").read_text()) | {"model_type": model_type}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"model_type '{model_type}'"):
        load_teacher(str(copy))


def test_without_a_network_the_error_says_what_to_pass_instead(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nobody/no-such-clip could not be fetched .*transformers:DIR"):
        load_teacher("transformers:nobody/no-such-clip")
