"""Objectives alone, in a loop of one's own."""

import pytest
import torch
import torch.nn.functional as F
from tiny import save_images, save_tiny_clip

from sf_llava.bootstrap.config import StudentConfig
from sf_llava.bootstrap.objectives.embedding import EmbeddingObjective
from sf_llava.bootstrap.objectives.tokens import TokenObjective, measure_tokens
from sf_llava.bootstrap.student import make_student
from sf_llava.data import open_images
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.transforms import BootstrapTransform
from sf_llava.teachers import load_teacher


def test_two_objectives_train_a_student_in_a_loop_of_ones_own(tmp_path):
    save_tiny_clip(tmp_path / "clip")
    save_images(tmp_path / "images", 8)
    teacher = load_teacher(str(tmp_path / "clip"))
    torch.manual_seed(0)
    student = make_student(StudentConfig(num_latents=4), teacher, on_cpu=True).train()
    images = BootstrapImages(open_images(f"folder:{tmp_path / 'images'}"), BootstrapTransform(teacher.preprocessing), 0)
    pixels = torch.stack([images[0, index]["pixel_values"] for index in range(8)])
    embedding, tokens = EmbeddingObjective(), TokenObjective({"set": 0.3}, *measure_tokens(teacher, images, -2))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    embeds, states = teacher.embeds_and_tokens(pixels, -2)
    losses = []
    for step in range(8):
        output = student(pixels, output_hidden_states=(-2, -1))
        terms = embedding(output.image_embeds, embeds)
        terms |= tokens(output.hidden_states[-2], states, torch.Generator().manual_seed(step))
        loss = sum(weight * terms[name] for name, weight in (embedding.weights | tokens.weights).items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_class_terms_are_the_divergence_and_the_cross_entropy_of_the_logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher, classifier = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    labels = torch.tensor([0, 3, 1, 2, 5, 4])
    objective = EmbeddingObjective("kl", 2.0, 0.5, lambda embeds: embeds @ classifier.T)
    terms = objective(student, teacher, labels)
    q, p = ((embeds @ classifier.T / 2).log_softmax(-1) for embeds in (student, teacher))
    assert terms["embedding"].item() == pytest.approx(4 * (p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)
    picked = (student @ classifier.T).log_softmax(-1)[torch.arange(6), labels]
    assert terms["class"].item() == pytest.approx(-picked.mean().item())
    assert objective.weights == {"embedding": 1.0, "class": 0.5}
    cosine = EmbeddingObjective()(student, teacher)["embedding"].item()
    assert cosine == pytest.approx(1 - F.cosine_similarity(student, teacher).mean().item())


def test_a_loss_on_classes_needs_logits():
    for loss in (dict(loss="kl"), dict(class_weight=0.1)):
        with pytest.raises(ValueError, match="needs class_logits"):
            EmbeddingObjective(**loss)
