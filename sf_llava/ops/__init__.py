"""Public ops of the encoder: one function per op, reference beside the kernels."""

from sf_llava.ops.sampling import place_points, sample_points

__all__ = ["place_points", "sample_points"]
