"""SparseFormer vision encoders bootstrapped from CLIP, and what puts them in CLIP's place."""

__version__ = "0.1.0"
