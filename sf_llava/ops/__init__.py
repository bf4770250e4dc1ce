"""Public ops of the encoder: one function per op, reference beside the kernels."""
