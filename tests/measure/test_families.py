"""Zero-shot, retrieval, attention maps and fewer tokens with teachers that have no CLS, or registers beside it."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import save_images
from tiny_families import save_dinov2_with_registers, save_siglip

from sf_llava.bootstrap.inherit import inherit, student_config
from sf_llava.commands.visualize import main as visualize
from sf_llava.data import open_labelled
from sf_llava.measure.baselines import MergedTeacher, PooledTeacher
from sf_llava.measure.encoders import student_candidate, teacher_candidate
from sf_llava.measure.store import EmbeddingStore
from sf_llava.model import SparseFormerModel
from sf_llava.retrieval.captions import open_captions
from sf_llava.retrieval.run import evaluate_retrieval
from sf_llava.teachers import load_teacher
from sf_llava.teachers.attention import pooling_attention
from sf_llava.zero_shot.run import evaluate_zero_shot
from sf_llava.zero_shot.task import zero_shot_task


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_teacher(str(save_siglip(tmp_path_factory.mktemp("siglip"))))


@pytest.fixture(scope="module")
def student(teacher) -> SparseFormerModel:
    torch.manual_seed(1)
    student = SparseFormerModel(student_config(teacher, num_latents=4))
    inherit(student, teacher)
    return student.eval()


@pytest.fixture
def encoders(teacher, student):
    return [teacher_candidate(teacher), student_candidate(student, teacher)]


def pixels_of(teacher, paths) -> torch.Tensor:
    return torch.stack([teacher.preprocessing(Image.open(path)) for path in paths])


def test_zero_shot_ranks_as_siglips_sigmoid_does(teacher, encoders, tmp_path):
    for number, name in enumerate(("cat", "dog", "red")):
        save_images(tmp_path / name, 4, seed=number)
    task = zero_shot_task(teacher, open_labelled(f"folder:{tmp_path}"))
    result = evaluate_zero_shot(task, encoders, batch_size=5)
    assert [row[6] for row in result.table()[1]] == ["9", "4"]  # no "+ CLS"
    model, inputs = teacher.model, pixels_of(teacher, sorted(tmp_path.glob("*/*.png")))
    texts = [f"a photo of a {name}." for name in ("cat", "dog", "red")]
    prompts = teacher.tokenizer(texts, padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(input_ids=prompts["input_ids"], pixel_values=inputs).logits_per_image.sigmoid()
    assert torch.equal(result.scores[0].predictions, probabilities.argmax(dim=1))


def test_retrieval_is_that_of_plain_embeddings(teacher, encoders, tmp_path):
    save_images(tmp_path, 8)
    words = np.random.default_rng(0).choice(("a", "photo", "of", "cat", "dog", "red"), (8, 5))
    images = [{"id": index, "file_name": f"{index:04d}.png"} for index in range(8)]
    captions = [{"id": index, "image_id": index, "caption": " ".join(row)} for index, row in enumerate(words)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    data = open_captions(str(tmp_path / "captions.json"))
    result = evaluate_retrieval(data, teacher, encoders, EmbeddingStore(tmp_path / "store"), batch_size=3)
    assert [row[-2] for row in result.table()[1]] == ["9", "4"]
    embeds = F.normalize(teacher(pixels_of(teacher, sorted(tmp_path.glob("*.png")))), dim=-1)
    scores = embeds @ F.normalize(teacher.encode_text(data.captions), dim=-1).T
    assert torch.equal(result.recalls[0].ranks["image_to_text"] == 0, scores.argmax(dim=1) == torch.arange(8))


def test_what_the_pooling_attends_to_is_what_torchs_attention_says(teacher):
    tokens, head = teacher.tokens(torch.randn(2, 3, 24, 24), -1), teacher.model.vision_model.head
    ours = pooling_attention(tokens, teacher.head_state_dict(), teacher.num_attention_heads, teacher.layer_norm_eps)
    normalised = teacher.model.vision_model.post_layernorm(tokens)
    _, expected = head.attention(head.probe.expand(2, -1, -1), normalised, normalised)
    torch.testing.assert_close(ours, expected[:, 0])


def test_where_a_student_without_cls_looks_is_drawn(teacher, student, tmp_path):
    student.save_pretrained(tmp_path / "encoder")
    save_images(tmp_path / "photos", 1)
    arguments = ["--encoder", str(tmp_path / "encoder"), "--teacher", teacher.name, "--output", str(tmp_path / "out")]
    visualize([str(tmp_path / "photos" / "0000.png"), *arguments])
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize("kind", [PooledTeacher, MergedTeacher])
def test_fewer_tokens_of_teachers_that_are_not_cls_and_patches_are_refused(teacher, tmp_path, kind):
    for other in (teacher, load_teacher(str(save_dinov2_with_registers(tmp_path)))):
        with pytest.raises(ValueError, match="expected CLS and patches, no registers"):
            kind(other, 4)
