"""The small ViT classifier: trained, saved as timm saves, opened as a teacher."""

import json

import pytest
import torch

from sf_llava.mini.training import vit_classifier
from sf_llava.mini.training.clip_model import normalise
from sf_llava.mini.training.clip_teacher import dense_head
from sf_llava.mini.training.clip_training import TrainingConfig, build_optimizers, train
from sf_llava.mini.world.shapes import CLASS_NAMES
from sf_llava.teachers import load_teacher
from sf_llava.teachers.timm_classifier import save_classifier

SHORT = TrainingConfig(steps=2, batch_size=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier after two steps, its directory, and the losses on the way."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    vit = vit_classifier.build_vit(len(CLASS_NAMES))
    train(
        vit,
        dense_head(),
        lambda step: vit_classifier.make_batch(step, SHORT),
        lambda vit: {"accuracy": 0.0},
        SHORT,
        folder,
        vit_classifier.training_step,
    )
    save_classifier(vit, vit_classifier.GEOMETRY, folder / "vit")
    return vit.eval(), folder / "vit", [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["{}", "timm:{}"])
def test_its_directory_is_a_teacher_with_its_own_classifier(trained, name):
    vit, directory, _ = trained
    teacher = load_teacher(name.format(directory))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(teacher.classify(teacher(pixels)), vit(pixels), atol=5e-3, rtol=0)  # half precision
    assert (teacher.num_classes, teacher.num_patches, teacher.num_hidden_layers) == (64, 64, 6)
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(teacher.preprocessing.normalise_pixels(image[None]), normalise(image[None]))


def test_losses_begin_at_chance_and_blocks_are_trained_by_muon(trained):
    vit, _, losses = trained
    assert losses[0]["class"] == pytest.approx(torch.tensor(64.0).log().item(), abs=0.3)
    assert {"label", "silhouette", "box", "form"} <= losses[0].keys()
    muon, _ = build_optimizers(vit, None, SHORT)
    assert len(muon.param_groups[0]["params"]) == 6 * 4  # qkv, proj, fc1, fc2 of every block


def test_accuracy_counts_the_likeliest_classes(trained):
    vit = trained[0]
    images = torch.randint(0, 256, (5, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        likeliest = vit(normalise(images)).argmax(dim=1)
    labels = likeliest.clone()
    labels[0] += 1
    assert vit_classifier.accuracy(vit, images, labels) == pytest.approx(0.8)
