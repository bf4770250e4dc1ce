"""Semantic segmentation on the latents of a SparseFormer: head, training, scores, pictures (Eq. 6-7, Table 5)."""
