"""Objectives alone, in a loop of one's own."""

import pytest
import torch
import torch.nn.functional as F
from tiny import save_images, save_tiny_clip

from sf_llava.bootstrap.batches import Batch
from sf_llava.bootstrap.config import StudentConfig
from sf_llava.bootstrap.objectives.embedding import EmbeddingObjective, cosine_loss
from sf_llava.bootstrap.objectives.objective import Objective, Seen
from sf_llava.bootstrap.objectives.statistics import measure_tokens
from sf_llava.bootstrap.objectives.sum import ObjectiveSum, Taught
from sf_llava.bootstrap.objectives.tokens import TokenObjective
from sf_llava.bootstrap.student import make_student
from sf_llava.data import open_images
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.transforms import BootstrapTransform
from sf_llava.model import SparseFormerOutput
from sf_llava.teachers import load_teacher


def test_two_objectives_train_a_student_in_a_loop_of_ones_own(tmp_path):
    save_tiny_clip(tmp_path / "clip")
    save_images(tmp_path / "images", 8)
    teacher = load_teacher(str(tmp_path / "clip"))
    torch.manual_seed(0)
    student = make_student(StudentConfig(num_latents=4), teacher, on_cpu=True).train()
    images = BootstrapImages(open_images(f"folder:{tmp_path / 'images'}"), BootstrapTransform(teacher.preprocessing), 0)
    pixels = images.pixel_values(range(8))
    statistics = measure_tokens(teacher, images, -2)
    objectives = [EmbeddingObjective(), TokenObjective({"set": 0.3, "readout": 1.0}, statistics)]
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    taught = Seen(*teacher.embeds_and_tokens(pixels, -2))
    losses = []
    for _ in range(8):
        said = Seen.by_student(student(pixels, output_hidden_states=(-2, -1)), layer=-2)
        loss = torch.zeros(())
        for objective in objectives:
            terms = objective(said, taught, torch.arange(8), torch.Generator().manual_seed(0))
            assert terms.keys() == objective.weights.keys()
            assert all(term.shape == () and term.dtype == torch.float32 for term in terms.values())
            loss = loss + sum(weight * terms[name] for name, weight in objective.weights.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_class_terms_are_the_divergence_and_the_cross_entropy_of_the_logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher, classifier = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    known = torch.tensor([9, 0, 3, 1, 2, 5, 4])
    indices, labels = torch.arange(1, 7), known[1:]
    objective = EmbeddingObjective("kl", 2.0, 0.5, lambda embeds: embeds @ classifier.T, known)
    terms = objective(Seen(student), Seen(teacher), indices, generator)
    q, p = ((embeds @ classifier.T / 2).log_softmax(-1) for embeds in (student, teacher))
    assert terms["embedding"].item() == pytest.approx(4 * (p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)
    picked = (student @ classifier.T).log_softmax(-1)[torch.arange(6), labels]
    assert terms["class"].item() == pytest.approx(-picked.mean().item())
    assert objective.weights == {"embedding": 1.0, "class": 0.5}
    cosine = EmbeddingObjective()(Seen(student), Seen(teacher), indices, generator)["embedding"].item()
    assert cosine == pytest.approx(1 - F.cosine_similarity(student, teacher).mean().item())


def test_a_loss_on_classes_needs_logits_and_labels():
    for loss in (dict(loss="kl"), dict(class_weight=0.1)):
        with pytest.raises(ValueError, match="needs class_logits"):
            EmbeddingObjective(**loss)
    with pytest.raises(ValueError, match="needs labels"):
        EmbeddingObjective(class_weight=0.1, class_logits=lambda embeds: embeds)


def test_what_an_objective_needs_and_was_not_given_is_said():
    seen = Seen(torch.zeros(2, 3))
    for name, sentence in (("tokens", "give `states`"), ("rois", "give `last_rois`")):
        with pytest.raises(ValueError, match=sentence):
            getattr(seen, name)
    with pytest.raises(ValueError, match=r"output_hidden_states=\(-2, -1\)"):
        Seen.by_student(SparseFormerOutput(image_embeds=torch.zeros(2, 3)), layer=-2)


class Spread(Objective):
    """How far the student's embeddings lie from their mean: an objective of somebody's own, with state."""

    def __init__(self, weight):
        self.weights, self.calls = {"spread": weight}, 0

    def __call__(self, student, teacher, indices, generator):
        self.calls += 1
        return {"spread": student.embeds.var(dim=0).sum()}

    def save(self, directory):
        (directory / "calls").write_text(str(self.calls))

    def load(self, directory):
        self.calls = int((directory / "calls").read_text())


def test_an_objective_of_ones_own_is_summed_logged_and_kept_with_the_others(tmp_path):
    generator = torch.Generator().manual_seed(0)
    embeds, targets = (torch.randn(4, 5, generator=generator) for _ in range(2))
    spread = Spread(0.5)
    objective = ObjectiveSum(EmbeddingObjective(), [spread], layer=-2)
    assert objective.names == ("loss", "cosine", "spread") and not objective.needs_tokens
    batch = Batch(torch.zeros(4, 3, 8, 8), torch.arange(4), torch.empty(0, dtype=torch.int64), [])
    terms = objective(
        lambda pixels: SparseFormerOutput(image_embeds=embeds), batch.pixel_values, Taught(targets, None), batch, (0,)
    )
    cosine, expected = 1 - cosine_loss(embeds, targets), embeds.var(dim=0).sum()
    torch.testing.assert_close(terms.loss, 1 - cosine + 0.5 * expected)
    torch.testing.assert_close(terms.scores, torch.stack([terms.loss, cosine, expected]))
    objective.save(tmp_path)
    spread.calls = 9
    objective.load(tmp_path)
    assert spread.calls == 1
