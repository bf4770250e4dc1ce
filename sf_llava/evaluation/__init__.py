"""Zero-shot evaluation of a teacher and its students in one pass; nothing here prints or parses.

    task = zero_shot_task(teacher, open_labelled("mini"))
    result = evaluate_zero_shot(task, [teacher_encoder(teacher), student_encoder(student, teacher)])
    result.to_dict(), result.table()

CLIP teachers score through a classifier made of class names; classification teachers (AugReg) through their own, and
their students through the one they inherited.
"""

from sf_llava.evaluation.encoders import Encoder, student_encoder, teacher_encoder
from sf_llava.evaluation.task import ZeroShotTask, match_labels, zero_shot_task
from sf_llava.evaluation.zero_shot import ZeroShotResult, evaluate_zero_shot

__all__ = [
    "Encoder",
    "ZeroShotResult",
    "ZeroShotTask",
    "evaluate_zero_shot",
    "match_labels",
    "student_encoder",
    "teacher_encoder",
    "zero_shot_task",
]
