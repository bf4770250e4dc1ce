"""A student as ``clip.visual``: open_clip's and CLIP_benchmark's own calls run on it unchanged."""

import copy

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from sf_llava.bootstrap.inherit import inherit, student_config
from sf_llava.data.transforms import Preprocessing
from sf_llava.model import SparseFormerModel
from sf_llava.retrieval.scoring import caption_ranks, image_ranks, recall_at_k
from sf_llava.teachers import load_teacher
from sf_llava.teachers.open_clip_adapter import as_open_clip_visual


@pytest.fixture(scope="module")
def student(open_clip_models) -> SparseFormerModel:
    teacher = load_teacher(f"open_clip:tiny/{open_clip_models / 'weights.pt'}")
    torch.manual_seed(1)
    student = SparseFormerModel(student_config(teacher, num_latents=5))
    inherit(student, teacher)
    return student.eval()


@pytest.fixture
def clip(open_clip_models, student):
    """An open_clip model as its users build one, its tower replaced."""
    model = open_clip.create_model("tiny", pretrained=str(open_clip_models / "weights.pt"))
    model.visual = as_open_clip_visual(copy.deepcopy(student))
    return model.eval()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def test_encode_image_is_the_student(clip, student, pixels):
    with torch.no_grad():
        expected = student(pixels).image_embeds
        assert torch.equal(clip.encode_image(pixels), expected)
        torch.testing.assert_close(clip.encode_image(pixels, normalize=True), F.normalize(expected, dim=-1))
        image, text, scale = clip(pixels, open_clip.tokenize(["a cat", "a dog"])[:, :16])
    assert image.shape == (3, 20) and text.shape == (2, 20) and scale > 0


def test_transforms_come_from_the_tower(clip, student):
    preprocess = image_transform_v2(PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    tensor = preprocess(picture)
    assert tensor.shape == (3, 24, 24) and clip.visual.image_size == (24, 24)
    ours = Preprocessing(24, student.config.image_mean, student.config.image_std)
    assert torch.equal(tensor, ours(picture))
    open_clip.model.set_model_preprocess_cfg(clip, open_clip.model.get_model_preprocess_cfg(clip))


def test_zero_shot_classifiers_build_and_classify(clip, pixels):
    def tokenizer(texts):
        return open_clip.tokenize(texts)[:, :16]

    with torch.no_grad():
        templates = [lambda name: f"a {name}", lambda name: f"the {name}"]
        weights = open_clip.build_zero_shot_classifier(clip, tokenizer, ["cat", "dog", "ship"], templates)
        logits = clip.encode_image(pixels, normalize=True) @ weights
    assert logits.shape == (3, 3)


def test_lock_freezes_all_but_the_last_groups(clip):
    def free():
        return {name.split(".", 1)[1] for name, p in clip.visual.named_parameters() if p.requires_grad}

    clip.lock_image_tower()
    assert free() == set()
    clip.lock_image_tower(unlocked_groups=1)
    assert free() == {"projection.weight"}
    clip.lock_image_tower(unlocked_groups=2)
    last = len(clip.visual.student.cortex) - 1
    assert {name.split(".")[0] for name in free()} == {"projection", "norm", "cortex"}
    assert all(name.startswith(f"cortex.{last}.") for name in free() if name.startswith("cortex"))
    clip.lock_image_tower(unlocked_groups=99)
    assert len(free()) == len(list(clip.visual.parameters()))


def test_gradient_checkpointing_changes_nothing_but_memory(clip, pixels):
    gradients = []
    for enable in (False, True):
        clip.train().zero_grad()
        clip.set_grad_checkpointing(enable)
        assert clip.visual.student.is_gradient_checkpointing == enable
        clip.encode_image(pixels).square().sum().backward()
        gradients.append(clip.visual.student.focusing.initial_rois.grad.clone())
    torch.testing.assert_close(*gradients)


def test_weight_decay_skips_embeddings(clip):
    names = clip.no_weight_decay()
    assert {"visual.student.focusing.initial_rois", "visual.student.focusing.stage_embedding"} <= names
    assert all(name in dict(clip.named_parameters()) for name in names if name.startswith("visual."))


@pytest.mark.parametrize("indices", [None, 1, [0]])
def test_intermediates_are_the_hidden_states(clip, student, pixels, indices):
    with torch.no_grad():
        states = student(pixels, output_hidden_states=True).hidden_states[1:]
        output = clip.forward_intermediates(
            pixels, image_indices=indices, image_output_fmt="NLC", image_output_extra_tokens=True
        )
        only = clip.forward_intermediates(
            pixels, image_indices=indices, stop_early=True, intermediates_only=True, image_output_fmt="NLC"
        )
        normed = clip.visual.forward_intermediates(pixels, indices, normalize_intermediates=True, output_fmt="NLC")
        features = F.normalize(student(pixels).image_embeds, dim=-1)
    taken = {None: list(range(len(states))), 1: [len(states) - 1]}.get(indices if indices != [0] else 0, [0])
    for place, index in enumerate(taken):
        torch.testing.assert_close(output["image_intermediates"][place], states[index][:, 1:])
        torch.testing.assert_close(output["image_intermediates_prefix"][place], states[index][:, :1])
        torch.testing.assert_close(only["image_intermediates"][place], states[index][:, 1:])
        torch.testing.assert_close(normed["image_intermediates"][place], student.norm(states[index])[:, 1:])
    assert len(output["image_intermediates"]) == len(taken) and set(only) == {"image_intermediates"}
    torch.testing.assert_close(output["image_features"], features)


def test_a_grid_of_latents_is_refused(clip, pixels):
    with pytest.raises(ValueError, match=r"form no grid.*image_output_fmt='NLC'"):
        clip.forward_intermediates(pixels)


def test_a_saved_model_loads_with_open_clips_own_calls(clip, student, pixels, open_clip_models, tmp_path):
    with torch.no_grad():
        clip.visual.student.cls_token += 0.5
        expected = clip.encode_image(pixels)
    torch.save({"epoch": 1, "state_dict": clip.state_dict()}, tmp_path / "epoch_1.pt")
    fresh = open_clip.create_model("tiny")
    fresh.visual = as_open_clip_visual(SparseFormerModel(student.config))
    open_clip.load_checkpoint(fresh, str(tmp_path / "epoch_1.pt"), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh.eval().encode_image(pixels), expected)


def test_half_precision_as_open_clip_casts_it(clip, pixels):
    with torch.no_grad():
        expected = F.normalize(clip.encode_image(pixels), dim=-1)
        clip.to(torch.bfloat16)
        embeds = clip.encode_image(pixels.bfloat16())
    assert embeds.dtype == torch.bfloat16
    assert (F.normalize(embeds.float(), dim=-1) * expected).sum(-1).min() > 0.98


def test_a_student_of_no_clip_is_refused(student):
    config = copy.deepcopy(student.config)
    config.projection_dim, config.num_classes = 0, 7
    with pytest.raises(ValueError, match="bootstrapped from no CLIP"):
        as_open_clip_visual(SparseFormerModel(config))


def test_clip_benchmarks_retrieval_agrees_exactly(clip):
    benchmark = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="clip-benchmark not installed")
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(40, 3, 24, 24, generator=generator)
    words = ["cat", "dog", "ship", "red", "blue", "old", "new", "fast", "slow", "tall"]
    draws = torch.randint(0, len(words), (40, 5, 4), generator=generator).tolist()
    captions = [[" ".join(words[i] for i in text) for text in texts] for texts in draws]

    def tokenizer(texts):
        return open_clip.tokenize(texts)[:, :16]

    loader = [(images[i : i + 8], captions[i : i + 8]) for i in range(0, 40, 8)]
    theirs = benchmark.evaluate(clip, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    with torch.no_grad():
        image_embeds = torch.cat([clip.encode_image(batch) for batch, _ in loader])
        text_embeds = torch.cat([clip.encode_text(tokenizer([t for own in texts for t in own])) for _, texts in loader])
    image_of = torch.arange(40).repeat_interleave(5)
    for k in (1, 5, 10):
        to_text = recall_at_k(caption_ranks(image_embeds, text_embeds, image_of), k).float().mean().item()
        to_image = recall_at_k(image_ranks(image_embeds, text_embeds, image_of), k).float().mean().item()
        assert to_text == theirs[f"text_retrieval_recall@{k}"]
        assert to_image == theirs[f"image_retrieval_recall@{k}"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_coca_is_refused_whatever_the_batch(student, count):
    text = dict(context_length=16, vocab_size=49408, width=16, heads=1, layers=1, embed_cls=True, output_tokens=True)
    vision = dict(image_size=24, patch_size=8, width=32, head_width=16, layers=1, attentional_pool=True)
    decoder = dict(context_length=16, vocab_size=49408, width=16, heads=1, layers=1)
    coca = open_clip.CoCa(20, decoder, text, vision | dict(attn_pooler_heads=4, output_tokens=True))
    coca.visual = as_open_clip_visual(student)
    pixels = torch.randn(count, 3, 24, 24)
    with pytest.raises(ValueError, match="cannot be the tower of a CoCa"):
        coca.encode_image(pixels)
    with pytest.raises(ValueError, match="cannot be the tower of a CoCa"):
        coca.forward_intermediates(pixels, image_output_fmt="NLC")
    assert coca.visual(pixels).shape == (count, 20)


def test_a_student_without_cls_is_the_tower_of_a_siglip(open_clip_siglip_dir, pixels):
    teacher = load_teacher(str(open_clip_siglip_dir))
    student = SparseFormerModel(student_config(teacher, num_latents=5)).eval()
    inherit(student, teacher)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{open_clip_siglip_dir}")
    model.visual = as_open_clip_visual(student)
    with torch.no_grad():
        assert torch.equal(model.eval().encode_image(pixels), student(pixels).image_embeds)
    assert model.visual.output_dim == 32 and model.visual.preprocess_cfg["resize_mode"] == "squash"
    found = model.visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
    assert {state.shape for state in found["image_intermediates"]} == {(3, 5, 32)}
    assert "image_intermediates_prefix" not in found
    model.visual.lock(1)
    free = {name for name, parameter in model.visual.named_parameters() if parameter.requires_grad}
    assert free == {f"student.pool.{name}" for name, _ in student.pool.named_parameters()}
