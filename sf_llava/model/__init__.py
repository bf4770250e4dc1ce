"""The SparseFormer: early convolution, focusing transformer, cortex transformer."""

from sf_llava.model.sparseformer import SparseFormerModel, SparseFormerOutput

__all__ = ["SparseFormerModel", "SparseFormerOutput"]
