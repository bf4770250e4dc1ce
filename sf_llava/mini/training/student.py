"""The student that ships: the quickstart's, in a form that takes little room in a wheel."""

from pathlib import Path

import torch
from torch import Tensor

from sf_llava import files
from sf_llava.model.loading import load_encoder

SIGNIFICANT_BITS = 4
"""Of every weight: the rest of a half-precision number is zero, which a wheel's compression takes away."""


def round_significand(values: Tensor, bits: int) -> Tensor:
    """Round to the nearest numbers whose significand has so many bits, by at most a 2^bits-th of each."""
    significand, exponent = torch.frexp(values)
    return torch.ldexp((significand * 2**bits).round() / 2**bits, exponent)


@torch.no_grad()
def write_student(run: Path, output: Path) -> Path:
    """Write the encoder of ``run`` into ``output/student``, rounded, in half precision.

    Raises:
        ValueError: no whole encoder is there.
    """
    student = load_encoder(run)
    for parameter in student.parameters():
        parameter.copy_(round_significand(parameter, SIGNIFICANT_BITS))
    with files.writing(output / "student"):
        files.write_directory(output / "student", student.to(torch.float16).save_pretrained)
    return output / "student"
