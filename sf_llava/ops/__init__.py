"""Public ops of the encoder: one function per op; reference, analytic form and kernels beside it."""

from sf_llava.ops.geometry import place_points, prepare_map
from sf_llava.ops.sampling import force, sample_and_mix, sample_points

__all__ = ["force", "place_points", "prepare_map", "sample_and_mix", "sample_points"]
