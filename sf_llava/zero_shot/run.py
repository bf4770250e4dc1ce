"""Top-1 and top-5 of a teacher and its students on one task, with intervals, and how far the students follow.

Letters: N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from sf_llava.measure.encoders import Advance, Candidate, EncodingPass, ignore, share
from sf_llava.measure.intervals import paired_bootstrap_interval, paired_difference_interval, wilson_interval
from sf_llava.model.costs import count_multiply_adds
from sf_llava.zero_shot.scoring import commonest_disagreements, label_ranks, per_class_accuracy, predicted_classes
from sf_llava.zero_shot.task import ZeroShotTask

NUM_DISAGREEMENTS = 20


@dataclass(frozen=True)
class EncoderScore:
    """What one encoder reached.

    Attributes:
        encoder: which one.
        ranks: (N,) place of the right class, 0 first.
        predictions: (N,) likeliest class.
        cosines: (N,) cosine to the first encoder's embedding.
        images_per_second: of the forward pass alone.
        multiply_adds: of one image's embedding and, where it has a classifier, logits; None where it was not asked for.
    """

    encoder: Candidate
    ranks: Tensor
    predictions: Tensor
    cosines: Tensor
    images_per_second: float
    multiply_adds: int | None = None

    def top(self, k: int) -> float:
        """Share of images whose right class is among the first ``k``."""
        return (self.ranks < k).double().mean().item()

    def correct(self) -> np.ndarray:
        """(N,) 1.0 where the likeliest class is right."""
        return (self.ranks == 0).double().numpy()


@dataclass(frozen=True)
class ZeroShotResult:
    """Scores of all encoders on the images that could be read; the first encoder is the reference."""

    task: ZeroShotTask
    labels: Tensor
    scores: list[EncoderScore]
    corrupt: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Give everything measured as JSON-able values; accuracies as fractions, intervals 95 %."""
        reference, *others = self.scores
        return {
            **self.task.description,
            "num_images": len(self.labels),
            "num_corrupt": len(self.corrupt),
            "corrupt": self.corrupt,
            "encoders": [self._score(score) for score in self.scores],
            "comparisons": [self._comparison(reference, score) for score in others],
            "per_class": self._per_class(),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Give header and rows of the table: accuracies in per cent, one encoder a row."""
        header = ["encoder", "top-1", "95 %", "top-5", "retention", "cosine"]
        header += ["tokens", "px", "parameters", "mult-adds", "images/s"]
        rows = []
        for number, score in enumerate(self.scores):
            values = self._score(score)
            low, high = values["top1_interval"]
            retention = score.top(1) / self.scores[0].top(1) if self.scores[0].top(1) else None
            rows.append(
                [
                    score.encoder.name,
                    f"{values['top1']:.2%}",
                    f"{100 * low:.2f}-{100 * high:.2f}",
                    "" if values["top5"] is None else f"{values['top5']:.2%}",
                    f"{retention:.1%}" if number and retention is not None else "",
                    f"{score.cosines.mean():.4f}" if number else "",
                    score.encoder.tokens,
                    str(values["image_size"]),
                    f"{score.encoder.num_parameters / 1e6:.2f} M",
                    "" if score.multiply_adds is None else f"{score.multiply_adds / 1e9:.3g} G",
                    f"{score.images_per_second:.0f}",
                ]
            )
        return header, rows

    def _score(self, score: EncoderScore) -> dict[str, Any]:
        right = [int((score.ranks < k).sum()) for k in (1, 5)]
        asks_five = len(self.task.class_names) > 5
        return {
            "name": score.encoder.name,
            "kind": score.encoder.kind,
            "top1": score.top(1),
            "top1_interval": wilson_interval(right[0], len(self.labels)),
            "top5": score.top(5) if asks_five else None,
            "top5_interval": wilson_interval(right[1], len(self.labels)) if asks_five else None,
            "num_tokens": score.encoder.num_tokens,
            "num_parameters": score.encoder.num_parameters,
            "image_size": score.encoder.preprocessing.image_size,
            "multiply_adds": score.multiply_adds,
            "images_per_second": round(score.images_per_second, 1),
        }

    def _comparison(self, reference: EncoderScore, score: EncoderScore) -> dict[str, Any]:
        first, second = score.correct(), reference.correct()
        retention = first.mean() / second.mean() if second.any() else None
        names = self.task.class_names
        pairs = commonest_disagreements(reference.predictions, score.predictions, NUM_DISAGREEMENTS)
        return {
            "encoder": score.encoder.name,
            "reference": reference.encoder.name,
            "retention": retention,
            "retention_interval": paired_bootstrap_interval(first, second, np.divide) if second.any() else None,
            "top1_difference": first.mean() - second.mean(),
            "top1_difference_interval": paired_difference_interval(first, second)[1:],
            "cosine": score.cosines.mean().item(),
            "agreement": (score.predictions == reference.predictions).double().mean().item(),
            "both_right": int((first * second).sum()),
            "only_encoder_right": int((first * (1 - second)).sum()),
            "only_reference_right": int((second * (1 - first)).sum()),
            "neither_right": int(((1 - first) * (1 - second)).sum()),
            "commonest_disagreements": [
                {"reference": names[i], "encoder": names[j], "images": count} for i, j, count in pairs
            ],
        }

    def _per_class(self) -> list[dict[str, Any]]:
        num_classes = len(self.task.class_names)
        measured = [per_class_accuracy(score.ranks == 0, self.labels, num_classes) for score in self.scores]
        accuracies, counts = [accuracy.tolist() for accuracy, _ in measured], measured[0][1]
        return [
            {"class": name, "images": int(counts[i])}
            | {score.encoder.name: values[i] for score, values in zip(self.scores, accuracies, strict=True)}
            for i, name in enumerate(self.task.class_names)
            if counts[i]
        ]


def evaluate_zero_shot(
    task: ZeroShotTask,
    encoders: Sequence[Candidate],
    *,
    batch_size: int = 64,
    workers: int = 0,
    advance: Advance = ignore,
    state: PartialState | None = None,
    with_costs: bool = False,
) -> ZeroShotResult:
    """Run the encoders over the task's images and score them.

    Args:
        task: made with the teacher whose text tower or classifier scores.
        encoders: the teacher first, then its students; all on one device.
        batch_size: images a forward pass.
        workers: processes that decode; 0 decodes in this one.
        advance: called with the number of images done after each batch.
        state: processes among which batches are dealt out; None evaluates all in this one. Batches are composed alike
            whatever the number of processes, so the scores are equal, and every process returns them.
        with_costs: count multiply-adds too.

    Raises:
        ValueError: no image, or none that can be read, or embeddings hold NaN.
    """
    if not task.indices:
        raise ValueError("the data set has no images to evaluate on")
    labels = torch.tensor(task.labels)
    everything = range(len(labels))
    mine = list(everything) if state is None else share(everything, batch_size, state)
    encoding = EncodingPass(encoders, task.images, [task.indices[i] for i in mine], batch_size, workers, advance)
    batches: list[tuple[list[int], list[tuple[Tensor, Tensor, Tensor]]]] = []
    for own_places, outputs in encoding:
        places = [mine[place] for place in own_places]
        reference = outputs[0][0].float()
        batches.append((places, [_measure(task, labels[places], *output, reference) for output in outputs]))
    corrupt = encoding.corrupt
    if state is not None:
        batches = sorted(gather_object(batches), key=lambda batch: batch[0])
        corrupt = gather_object(corrupt)
    if not batches:
        raise ValueError(f"none of the {len(labels)} images can be read; the first: {corrupt[0]}")
    results = []
    for number, (encoder, speed) in enumerate(zip(encoders, encoding.images_per_second, strict=True)):
        ranks, predictions, cosines = (torch.cat([scores[number][i] for _, scores in batches]) for i in range(3))
        costs = count_multiply_adds(encoder.module, encoder.preprocessing.image_size) if with_costs else None
        results.append(EncoderScore(encoder, ranks, predictions, cosines, speed, costs))
    return ZeroShotResult(task, labels[[place for places, _ in batches for place in places]], results, corrupt)


def _measure(
    task: ZeroShotTask, labels: Tensor, embeds: Tensor, logits: Tensor | None, reference: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank of the right class, likeliest class, and cosine to the reference, each (B,) on the CPU."""
    scores = _scores(task, embeds, logits)  # [B, C]
    ranks = label_ranks(scores, labels.to(scores.device))
    cosines = F.cosine_similarity(embeds.float(), reference, dim=-1)
    return ranks.cpu(), predicted_classes(scores).cpu(), cosines.cpu()


def _scores(task: ZeroShotTask, embeds: Tensor, logits: Tensor | None) -> Tensor:
    if task.classifier is None:
        assert logits is not None, "without a classifier the encoders bring logits of their own"
        return logits.float()
    return F.normalize(embeds.float(), dim=-1) @ task.classifier.to(embeds.device).T
