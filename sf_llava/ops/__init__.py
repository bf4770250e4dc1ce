"""Public ops of the encoder: one function per op; reference, analytic form and kernels beside it."""

from sf_llava.ops.geometry import place_points, prepare_map
from sf_llava.ops.reference import mix_with_biases, sample_clips
from sf_llava.ops.sampling import force, sample_and_mix, sample_points
from sf_llava.ops.zero_border import add_zero_border, inside_border

__all__ = [
    "add_zero_border",
    "force",
    "inside_border",
    "mix_with_biases",
    "place_points",
    "prepare_map",
    "sample_and_mix",
    "sample_clips",
    "sample_points",
]
