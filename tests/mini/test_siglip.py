"""The mini SigLIP that ships: what transformers makes of its files is the teacher, and it knows its world."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoProcessor

from sf_llava.bootstrap.inherit import inherit, student_config
from sf_llava.data import open_labelled
from sf_llava.measure.encoders import teacher_candidate
from sf_llava.mini import MINI_SIGLIP_DIR
from sf_llava.model import SparseFormerModel
from sf_llava.teachers import load_teacher
from sf_llava.zero_shot.run import evaluate_zero_shot
from sf_llava.zero_shot.task import zero_shot_task

WEIGHTS = MINI_SIGLIP_DIR / "model.safetensors"
pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the mini SigLIP is not trained yet")


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("mini-siglip")


def test_its_files_are_small_and_load_with_transformers_alone_to_the_same_embeddings(teacher):
    assert WEIGHTS.stat().st_size < 4_000_000
    siglip = AutoModel.from_pretrained(MINI_SIGLIP_DIR, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(MINI_SIGLIP_DIR)
    image, texts = open_labelled("mini").load(3), ["a red circle", "a picture of a Blue Star"]
    inputs = processor(text=texts, images=image, padding="max_length", return_tensors="pt")
    pixels = teacher.preprocessing(image)[None]
    torch.testing.assert_close(pixels, inputs["pixel_values"], atol=1e-5, rtol=0)
    with torch.no_grad():
        output = siglip(**{name: inputs[name] for name in ("input_ids", "pixel_values")})
    torch.testing.assert_close(F.normalize(teacher(pixels), dim=1), output.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(F.normalize(teacher.encode_text(texts), dim=1), output.text_embeds, atol=1e-5, rtol=0)


def test_it_knows_classes_of_held_out_pictures(teacher):
    images = open_labelled("mini")
    task = zero_shot_task(teacher, images, limit=96)
    score = evaluate_zero_shot(task, [teacher_candidate(teacher)], batch_size=96).scores[0]
    assert score.top(1) >= 0.9  # of 64 classes


def test_a_right_pair_is_likelier_than_not_and_a_wrong_one_is_not(teacher):
    images = open_labelled("mini")
    rows = [0, 9, 18, 27, 36, 45, 54, 63]
    siglip = AutoModel.from_pretrained(MINI_SIGLIP_DIR, dtype=torch.float32).eval()
    embeds = teacher(torch.stack([teacher.preprocessing(images.load(row)) for row in rows]))
    texts = teacher.encode_text([f"a {images.class_names[images.labels[row]]}" for row in rows])
    cosines = F.normalize(embeds, dim=1) @ F.normalize(texts, dim=1).T
    chances = (siglip.logit_scale.exp() * cosines + siglip.logit_bias).sigmoid().detach()
    assert (chances.argmax(dim=1) == torch.arange(8)).all()
    assert chances.diagonal().mean() > 5 * (chances.sum() - chances.diagonal().sum()) / 56


def test_its_student_has_no_cls_and_a_quarter_of_its_patches(teacher):
    config = student_config(teacher)
    assert (config.use_cls, config.num_latents, teacher.num_patches) == (False, 16, 64)
    student = SparseFormerModel(config)
    inherit(student, teacher)
    with torch.no_grad():
        output = student.eval()(torch.zeros(1, 3, 64, 64), output_hidden_states=True)
    assert output.hidden_states[-2].shape == (1, 16, 128) and output.image_embeds.shape == (1, 128)
