"""Inherit, align, train: from a frozen teacher and unlabelled images to a SparseFormer."""
