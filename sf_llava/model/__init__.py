"""The SparseFormer: early convolution, focusing transformer, cortex transformer."""
