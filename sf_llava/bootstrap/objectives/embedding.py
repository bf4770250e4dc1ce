"""The objective on the final embedding: the paper's alignment (Eq. 5) and the alternatives of its Table 3.

    objective = EmbeddingObjective()                                     # the cosine of Eq. 5
    student, teacher = Seen(encoder(pixel_values).image_embeds), Seen(clip(pixel_values))
    loss = objective(student, teacher, indices, generator)["embedding"]

``cosine_loss`` and ``kl_loss`` are the same as functions. Letters: B images, E embedding width, K classes.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.bootstrap.objectives.objective import Objective, Seen


class EmbeddingObjective(Objective):
    """Compares the student's embedding with the teacher's; its terms are ``embedding`` and, weighted, ``class``.

    Args:
        loss: ``cosine`` (Eq. 5), or ``kl`` between class distributions.
        temperature: of the latter.
        class_weight: of an added cross-entropy on labels; 0 adds none.
        class_logits: turns embeddings (B, E) into logits (B, K), for ``kl`` and the cross-entropy.
        labels: (images,) int64 class of every training image, for the cross-entropy.

    Raises:
        ValueError: a loss on classes without logits or labels.
    """

    def __init__(
        self,
        loss: Literal["cosine", "kl"] = "cosine",
        temperature: float = 3.0,
        class_weight: float = 0.0,
        class_logits: Callable[[Tensor], Tensor] | None = None,
        labels: Tensor | None = None,
    ) -> None:
        if class_logits is None and (loss == "kl" or class_weight):
            raise ValueError("a loss on classes needs class_logits, which turn embeddings into logits")
        if labels is None and class_weight:
            raise ValueError("the cross-entropy needs labels, the class of every training image")
        self.loss, self.temperature = loss, temperature
        self.class_logits, self.labels = class_logits, labels
        self.weights = {"embedding": 1.0} | ({"class": class_weight} if class_weight else {})

    def __call__(self, student: Seen, teacher: Seen, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute every term, unweighted; see :class:`Objective`."""
        logits = self.class_logits
        if self.loss == "kl" and logits is not None:
            terms = {"embedding": kl_loss(logits(student.embeds), logits(teacher.embeds), self.temperature)}
        else:
            terms = {"embedding": cosine_loss(student.embeds, teacher.embeds)}
        if "class" in self.weights and logits is not None and self.labels is not None:
            labels = self.labels[indices].to(student.embeds.device, non_blocking=True)
            terms["class"] = F.cross_entropy(logits(student.embeds), labels)
        return terms


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of the final embeddings, averaged over images (Eq. 5).

    Args:
        student: (B, E) embeddings of the student.
        teacher: (B, E) embeddings of the teacher.

    Returns:
        Scalar, float32.
    """
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


def kl_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student's class distribution from the teacher's, times temperature squared.

    Args:
        student_logits: (B, K) class logits.
        teacher_logits: (B, K) class logits.
        temperature: divides both.

    Returns:
        Scalar, float32, averaged over images.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
