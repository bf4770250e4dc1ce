"""Losses of the bootstrap: the paper's alignment and the alternatives of its Table 3."""

import torch.nn.functional as F
from torch import Tensor


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
