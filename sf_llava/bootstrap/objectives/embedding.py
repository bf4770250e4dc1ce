"""The objective on the final embedding: the paper's alignment (Eq. 5) and the alternatives of its Table 3.

    objective = EmbeddingObjective()                                     # the cosine of Eq. 5
    loss = objective(student(pixel_values).image_embeds, teacher(pixel_values))["embedding"]

Letters: B images, E embedding width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class EmbeddingObjective:
    """Compares the student's embedding with the teacher's.

    Attributes:
        loss: ``cosine`` (Eq. 5), or ``kl`` between class distributions.
        temperature: of the latter.
        class_weight: of an added cross-entropy on labels; 0 adds none.
        class_logits: turns embeddings (B, E) into logits (B, K), for ``kl`` and the cross-entropy.
    """

    loss: Literal["cosine", "kl"] = "cosine"
    temperature: float = 3.0
    class_weight: float = 0.0
    class_logits: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.class_logits is None and (self.loss == "kl" or self.class_weight):
            raise ValueError("a loss on classes needs class_logits, which turn embeddings into logits")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every term."""
        return {"embedding": 1.0} | ({"class": self.class_weight} if self.class_weight else {})

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute every term, unweighted.

        Args:
            student: (B, E) embeddings of the student.
            teacher: (B, E) embeddings of the teacher.
            labels: (B,) int64 classes, for the cross-entropy.

        Returns:
            Scalars by name, float32: ``embedding``, and ``class`` where it has a weight.
        """
        logits = self.class_logits
        if self.loss == "kl" and logits is not None:
            terms = {"embedding": kl_loss(logits(student), logits(teacher), self.temperature)}
        else:
            terms = {"embedding": cosine_loss(student, teacher)}
        if self.class_weight and logits is not None:
            assert labels is not None, "the cross-entropy needs labels"
            terms["class"] = F.cross_entropy(logits(student), labels)
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
