"""Writes a tiny SparseFormer directory; works beside old and new transformers."""

import torch

from sf_llava.llava.package import old_transformers

old_transformers.prepare()

from sf_llava.configuration import SparseFormerConfig  # noqa: E402 (after the line above)
from sf_llava.model import SparseFormerModel  # noqa: E402


def write_encoder(path, num_latents=16, **changes):
    """Write a random encoder to ``path`` and return its name for the package."""
    torch.manual_seed(0)
    fields = dict(
        image_size=32,
        num_latents=num_latents,
        hidden_size=64,
        focusing_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        focusing_num_attention_heads=1,
        intermediate_size=96,
        conv_channels=16,
        mixing_size=16,
        mixing_points=8,
        projection_dim=32,
    )
    SparseFormerModel(SparseFormerConfig(**(fields | changes))).save_pretrained(path)
    return f"sparseformer:{path}"
