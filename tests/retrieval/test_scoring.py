"""Recall equals brute force, on ties, several captions an image and any block size; and CLIP_benchmark's."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from sf_llava.retrieval.scoring import caption_ranks, image_ranks, recall_at_k, sum_by_image


def brute_force(images, texts, image_of):
    """Ranks by sorting Python tuples: larger score first, then smaller index."""
    scores = (F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T).tolist()
    num_images, num_texts = len(images), len(texts)
    by_image = []
    for i in range(num_images):
        order = sorted(range(num_texts), key=lambda t: (-scores[i][t], t))
        by_image.append(min(order.index(t) for t in range(num_texts) if image_of[t] == i))
    by_text = []
    for t in range(num_texts):
        order = sorted(range(num_images), key=lambda i: (-scores[i][t], i))
        by_text.append(order.index(int(image_of[t])))
    return torch.tensor(by_image), torch.tensor(by_text)


def uneven(num_images, generator):
    """1 to 7 captions an image, in random order."""
    counts = torch.randint(1, 8, (num_images,), generator=generator)
    image_of = torch.repeat_interleave(torch.arange(num_images), counts)
    return image_of[torch.randperm(len(image_of), generator=generator)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
def test_ranks_equal_brute_force_whatever_the_block(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    image_of = uneven(23, generator)
    if ties:  # signs in four dimensions: scores are exact and most of them equal
        images = torch.randint(0, 2, (23, 4), generator=generator).float() * 2 - 1
        texts = torch.randint(0, 2, (len(image_of), 4), generator=generator).float() * 2 - 1
    else:
        images = torch.randn(23, 16, generator=generator)
        texts = torch.randn(len(image_of), 16, generator=generator) + images[image_of]
    expected = brute_force(images, texts, image_of)
    for block_scores in (1, 100, 2**22):
        assert torch.equal(caption_ranks(images, texts, image_of, block_scores=block_scores), expected[0])
        assert torch.equal(image_ranks(images, texts, image_of, block_scores=block_scores), expected[1])


def test_a_constant_model_is_at_chance():
    image_of = torch.arange(10).repeat_interleave(5)
    images, texts = torch.ones(10, 4), torch.ones(50, 4)
    assert recall_at_k(image_ranks(images, texts, image_of), 1).float().mean() == 0.1
    assert recall_at_k(caption_ranks(images, texts, image_of), 5).float().mean() == 0.1


def test_one_good_caption_is_enough_for_an_image():
    images = torch.eye(2)
    texts = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 1.0]])  # image 0's first caption describes image 1
    image_of = torch.tensor([0, 0, 1])
    assert caption_ranks(images, texts, image_of).tolist() == [0, 1]
    assert image_ranks(images, texts, image_of).tolist() == [1, 0, 0]
    assert sum_by_image(torch.tensor([True, True, False]), image_of, 2).tolist() == [2, 0]


@pytest.mark.parametrize(
    "images, texts, image_of, message",
    [
        (torch.rand(2, 3), torch.rand(2, 4), torch.tensor([0, 1]), "expected image_embeds"),
        (torch.rand(2, 3), torch.rand(2, 3), torch.tensor([0, 2]), "captions name images 0 to 2"),
        (torch.rand(3, 3), torch.rand(2, 3), torch.tensor([0, 2]), "1 images have no caption, image 1"),
        (torch.rand(2, 3) * torch.nan, torch.rand(2, 3), torch.tensor([0, 1]), "image embeddings hold NaN"),
        (torch.rand(0, 3), torch.rand(0, 3), torch.zeros(0, dtype=torch.int64), "needs images and captions"),
    ],
)
def test_what_cannot_be_scored_is_refused(images, texts, image_of, message):
    with pytest.raises(ValueError, match=message):
        caption_ranks(images, texts, image_of)


def test_coco_size_needs_little_memory():
    pytest.importorskip("resource")
    code = """
import resource, torch
from sf_llava.retrieval.scoring import caption_ranks, image_ranks
images, texts = torch.randn(5000, 64), torch.randn(25000, 64)
image_of = torch.arange(5000).repeat_interleave(5)
caption_ranks(images[:500], texts[:2500], image_of[:2500])  # load what torch loads on first use
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
caption_ranks(images, texts, image_of)
image_ranks(images, texts, image_of)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200, f"{done.stdout} MiB"  # the matrix alone would be 477


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_equals_clip_benchmark(k):
    benchmark = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="clip-benchmark not installed")
    generator = torch.Generator().manual_seed(k)
    image_of = torch.arange(200).repeat_interleave(5)
    images = F.normalize(torch.randn(200, 32, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(1000, 32, generator=generator) + 2 * images[image_of], dim=-1)
    scores = texts @ images.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(1000), image_of] = True
    theirs = [
        (benchmark.batchify(benchmark.recall_at_k, *pair, 64, "cpu", k=k) > 0).float().mean().item()
        for pair in ((scores.T, positive.T), (scores, positive))
    ]
    ours = [
        recall_at_k(ranks(images, texts, image_of), k).float().mean().item() for ranks in (caption_ranks, image_ranks)
    ]
    assert ours == theirs
