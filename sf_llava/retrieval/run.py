"""Image-to-text and text-to-image recall of a teacher and its students on one data set, with intervals.

The CLIP protocol: no prompt, cosines in float32, the first five captions of an image; an image counts as right if any
of its captions is among the first k. Intervals resample images: captions of one image are no independent trials.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sf_llava.data import CorruptImageError
from sf_llava.data.transforms import Preprocessing
from sf_llava.measure.embeddings import embed_images, embed_texts
from sf_llava.measure.encoders import Advance, Candidate, ignore
from sf_llava.measure.intervals import paired_bootstrap_interval, paired_difference_interval, wilson_interval
from sf_llava.measure.store import EmbeddingStore
from sf_llava.retrieval.captions import CaptionedImages
from sf_llava.retrieval.scoring import caption_ranks, image_ranks, recall_at_k, sum_by_image
from sf_llava.teachers.base import Teacher

KS = (1, 5, 10)
DIRECTIONS = {"image_to_text": "I2T", "text_to_image": "T2I"}
TIMED_IMAGES = 64


@dataclass(frozen=True)
class Recall:
    """One encoder's ranks.

    Attributes:
        encoder: which one.
        ranks: direction -> ranks of the right answer, 0 first: (M,) for images, (N,) for captions.
        images_per_second: of the forward pass; None where embeddings were on disk.
    """

    encoder: Candidate
    ranks: dict[str, Tensor]
    images_per_second: float | None


@dataclass(frozen=True)
class RetrievalResult:
    """Recall of all encoders on the images that could be read; the first encoder is the reference."""

    data: CaptionedImages
    recalls: list[Recall]
    corrupt: list[str]
    reading: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Give everything measured as JSON-able values; recall as fractions, intervals 95 %."""
        return {
            "num_images": len(self.data),
            "num_captions": len(self.data.captions),
            "remarks": self.data.remarks(),
            "left_out": self.data.left_out,
            "num_corrupt": len(self.corrupt),
            "corrupt": self.corrupt,
            "encoders": [self._score(recall) for recall in self.recalls],
            "comparisons": [self._comparison(recall) for recall in self.recalls[1:]],
            "reading_images_per_second": self.reading,
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Give header and rows: recall in per cent with half of the 95 % interval's width, one encoder a row."""
        header = ["encoder", *(f"{short} R@{k}" for short in DIRECTIONS.values() for k in KS), "tokens", "images/s"]
        rows = []
        for recall in self.recalls:
            cells = []
            for direction in DIRECTIONS:
                for k in KS:
                    low, high = self._interval(recall, direction, k)
                    cells.append(f"{100 * self.recall(recall, direction, k):.2f} ±{50 * (high - low):.1f}")
            speed = "cached" if recall.images_per_second is None else f"{recall.images_per_second:.0f}"
            rows.append([recall.encoder.name, *cells, recall.encoder.tokens, speed])
        return header, rows

    def recall(self, recall: Recall, direction: str, k: int) -> float:
        """Share of queries whose answer is among the first ``k``."""
        return recall_at_k(recall.ranks[direction], k).double().mean().item()

    def _by_image(self, recall: Recall, direction: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Right answers and queries of each image."""
        hits = recall_at_k(recall.ranks[direction], k)
        if direction == "image_to_text":
            return hits.double().numpy(), np.ones(len(hits))
        image_of = torch.tensor(self.data.image_of)
        sums = [sum_by_image(values, image_of, len(self.data)) for values in (hits, torch.ones(len(image_of)))]
        return sums[0].numpy(), sums[1].numpy()

    def _interval(self, recall: Recall, direction: str, k: int) -> tuple[float, float]:
        hits, queries = self._by_image(recall, direction, k)
        if direction == "image_to_text" or hits.sum() in (0, queries.sum()):
            # All or none: resampling would see no spread, so images count as trials.
            return wilson_interval(round(hits.sum() / queries.sum() * len(hits)), len(hits))
        return paired_bootstrap_interval(hits, queries, np.divide)

    def _score(self, recall: Recall) -> dict[str, Any]:
        values: dict[str, Any] = {"name": recall.encoder.name}
        for direction in DIRECTIONS:
            values[direction] = {f"recall@{k}": self.recall(recall, direction, k) for k in KS}
            values[direction] |= {f"recall@{k}_interval": self._interval(recall, direction, k) for k in KS}
        return values | {
            "num_tokens": recall.encoder.num_tokens,
            "num_parameters": recall.encoder.num_parameters,
            "image_size": recall.encoder.preprocessing.image_size,
            "images_per_second": recall.images_per_second and round(recall.images_per_second, 1),
        }

    def _comparison(self, recall: Recall) -> dict[str, Any]:
        reference = self.recalls[0]
        values: dict[str, Any] = {"encoder": recall.encoder.name, "reference": reference.encoder.name}
        for direction in DIRECTIONS:
            for k in KS:
                (own, queries), (other, _) = (self._by_image(r, direction, k) for r in (recall, reference))
                difference, low, high = paired_difference_interval(own / queries, other / queries)
                values.setdefault(direction, {})[f"recall@{k}_difference"] = difference
                values[direction][f"recall@{k}_difference_interval"] = (low, high)
        return values


def evaluate_retrieval(
    data: CaptionedImages,
    teacher: Teacher,
    encoders: Sequence[Candidate],
    store: EmbeddingStore,
    *,
    batch_size: int = 64,
    workers: int = 0,
    advance: Advance = ignore,
) -> RetrievalResult:
    """Embed images with all encoders and captions with the teacher's text tower, and rank.

    Args:
        data: images with captions.
        teacher: whose text tower embeds the captions.
        encoders: the teacher first, then its students; all on one device.
        store: where embeddings are kept.
        batch_size: images a forward pass.
        workers: decoding processes.
        advance: called with the number of images done after each batch.

    Raises:
        ValueError: a teacher without text tower, no readable image, or embeddings that are not finite.
    """
    texts = embed_texts(teacher, data.captions, store)
    images = embed_images(encoders, data.source, store, batch_size=batch_size, workers=workers, advance=advance)
    fresh = any(speed is not None for speed in images.images_per_second)
    reading = time_reading(data, encoders[0].preprocessing) if fresh else None
    if len(images.places) < len(data):
        readable = set(images.places)
        texts = texts[torch.tensor([image in readable for image in data.image_of])]
        data = data.take(images.places)
    image_of = torch.tensor(data.image_of)
    recalls = []
    for encoder, embeds, speed in zip(encoders, images.embeds, images.images_per_second, strict=True):
        ranks = {
            "image_to_text": caption_ranks(embeds, texts, image_of),
            "text_to_image": image_ranks(embeds, texts, image_of),
        }
        recalls.append(Recall(encoder, ranks, speed))
    return RetrievalResult(data, recalls, images.corrupt, reading)


def time_reading(data: CaptionedImages, preprocessing: Preprocessing) -> dict[str, float]:
    """Time decoding and preprocessing apart, in images/s of one process, on some evenly spaced images."""
    count = min(TIMED_IMAGES, len(data))
    pictures, started = [], time.perf_counter()
    for place in range(count):
        try:
            pictures.append(data.source.load(place * len(data) // count))
        except CorruptImageError:
            continue
    decoded = time.perf_counter()
    for picture in pictures:
        preprocessing.pixels(picture)
    finished = time.perf_counter()
    return {
        "decode": round(len(pictures) / (decoded - started), 1),
        "preprocess": round(len(pictures) / (finished - decoded), 1),
    }
