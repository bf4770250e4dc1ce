"""Students of other families than CLIP: SigLIP's without CLS, DINOv2's without texts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import run_settings, save_images
from tiny_families import save_dinov2_with_registers, save_siglip, save_siglip_vision

from sf_llava.bootstrap.config import BootstrapConfig, StudentConfig
from sf_llava.bootstrap.inherit import check_fits, check_head, inherit, resize, set_trainable, student_config
from sf_llava.bootstrap.objectives.objective import Seen
from sf_llava.bootstrap.objectives.statistics import measure_tokens
from sf_llava.bootstrap.run import bootstrap
from sf_llava.bootstrap.student import make_student
from sf_llava.configuration import preset
from sf_llava.data import open_images
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.transforms import BootstrapTransform
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.teachers import load_teacher


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A SigLIP, a DINOv2 with registers, thirty pictures, and some more in folders named after classes."""
    path = tmp_path_factory.mktemp("world")
    save_siglip(path / "siglip")
    save_dinov2_with_registers(path / "dinov2")
    save_images(path / "images", 30)
    for number, name in enumerate(("cat", "dog")):
        save_images(path / "classes" / name, 6, seed=1 + number)
    return path


def run(world: Path, output: Path, teacher: str, **changes: object) -> dict:
    settings = run_settings(world, output, teacher=str(world / teacher), steps=12, warmup_steps=2, eval_every=6)
    return bootstrap(BootstrapConfig.of(**(settings | changes)))


def test_a_student_of_a_siglip_is_shaped_after_it(world):
    teacher = load_teacher(str(world / "siglip"))
    config = student_config(teacher)
    assert (config.use_cls, config.resize_mode, config.projection_dim) == (False, "squash", 0)
    assert (config.num_latents, config.num_hidden_layers, config.num_teacher_layers) == (2, 2, 3)
    student = SparseFormerModel(config).eval()
    inherit(student, teacher)
    check_head(student, teacher)
    # With every block inherited and all patches for latents, the embedding is the teacher's.
    pixels = torch.randn(2, 3, 24, 24)
    tokens, _ = student._run_cortex(teacher.tokens(pixels, 1), set())
    torch.testing.assert_close(student.pool(student.norm(tokens)), teacher(pixels), atol=1e-5, rtol=1e-5)
    report = set_trainable(student, teacher, None, True)
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name for name, _ in student.named_parameters() if name.startswith(("norm.", "pool.", "cortex.1."))
    }
    assert report.frozen_parameters == sum(student.get_parameter(name).numel() for name in frozen)
    grown = resize(student, 5, 32)
    assert grown.config.use_cls is False and grown(torch.zeros(1, 3, 32, 32)).image_embeds.shape == (1, 32)


def test_a_student_with_cls_does_not_fit_a_siglip(world):
    teacher = load_teacher(str(world / "siglip"))
    config = student_config(teacher)
    config.use_cls = True
    with pytest.raises(ValueError, match="use_cls is True, the teacher's is False"):
        check_fits(config, teacher)


def test_a_siglip_bootstraps_from_end_to_end_and_scores_by_its_texts(world, tmp_path):
    changes = {"val_data": f"folder:{world / 'classes'}", "num_latents": 4, "steps": 40, "lr": 4e-3}
    results = run(world, tmp_path, "siglip", **changes)
    assert results["val_cosine"] > 0.5
    assert [encoder["cls"] for encoder in results["encoders"]] == [False, False]
    assert [encoder["tokens"] for encoder in results["encoders"]] == [9, 4]
    assert results["zero_shot"]["templates"] == ["a photo of a {}."] and results["zero_shot"]["num_images"] == 12
    student, teacher = load_encoder(tmp_path), load_teacher(str(world / "siglip"))
    for name, value in teacher.head_state_dict().items():
        assert torch.equal(student.get_parameter(name), value), name
    assert not torch.equal(student.cortex[0].attn.qkv.weight, teacher.block_state_dict(1)["attn.qkv.weight"])
    again = run(world, tmp_path / "again", "siglip", num_latents=6, steps=2, warmup_steps=0, init_from=str(tmp_path))
    assert again["encoders"][1]["tokens"] == 6


def test_a_kept_teacher_without_cls_changes_no_bit(world, tmp_path):
    same = {"flip": 0.0, "crop_scale_min": 1.0, "batch_size": 5}
    for name in ("none", "auto"):
        run(world, tmp_path / name, "siglip", teacher_cache=name, **same)
    first, second = (load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("none", "auto"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_dinov2_bootstraps_on_embeddings_alone_or_on_tokens_too(world, tmp_path):
    results = run(world, tmp_path / "plain", "dinov2", val_data=f"folder:{world / 'classes'}")
    assert results["zero_shot"] is None and "val_top1" not in results
    aligned = run(world, tmp_path / "aligned", "dinov2", align="set+readout")
    assert aligned["encoders"][1]["cls"] and load_encoder(tmp_path / "aligned").config.num_latents == 2


def test_tokens_without_cls_are_aligned_from_the_first_on(world, tmp_path):
    teacher = load_teacher(str(world / "siglip"))
    images = BootstrapImages(open_images(f"folder:{world / 'images'}"), BootstrapTransform(teacher.preprocessing), 0)
    statistics = measure_tokens(teacher, images, -2)
    tokens = teacher.tokens(images.pixel_values(range(len(images))), -2)
    assert tokens.shape[1] == teacher.num_patches == len(statistics.places)
    torch.testing.assert_close(statistics.mean, tokens.flatten(0, 1).mean(dim=0), atol=1e-5, rtol=1e-4)
    student = make_student(StudentConfig(num_latents=4), teacher, on_cpu=True)
    pixels = images.pixel_values(range(3))
    said = Seen.by_student(student(pixels, output_hidden_states=(-2, -1)), layer=-2)
    assert not said.has_cls and said.places.shape[1] == 4 and torch.equal(said.of(slice(2)).places, said.places[:2])
    run(world, tmp_path, "siglip", align="set+readout+position", micro_batch_size=4)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(lines[0][name] > 0 for name in ("set", "readout", "position"))


def test_a_siglip_without_texts_is_a_teacher_too(world, tmp_path):
    save_siglip_vision(tmp_path / "tower")
    results = run(world, tmp_path / "run", str(tmp_path / "tower"), steps=2)
    assert results["zero_shot"] is None


def test_presets_of_clip_still_have_cls():
    assert preset("sf-l-clip-224").use_cls
