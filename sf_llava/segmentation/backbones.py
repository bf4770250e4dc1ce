"""What the head stands on: latents with RoIs and a map, from a SparseFormer, or from a ViT for comparison.

Letters: B images, H x W pixels, N latents or patches, D width, C channels of the map.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sf_llava.bootstrap.inherit import HEAD_MODULES
from sf_llava.model import SparseFormerModel
from sf_llava.model.early_conv import EarlyConvolution
from sf_llava.teachers.base import Teacher

CHANNELS = 64
"""Of the map that a ViT, which has none, gets for its queries; as the SparseFormer's."""


class Seen(NamedTuple):
    """What the head reads: features (B, H/4, W/4, C), tokens (B, N, D), rois (B, N, 4) corners as image fractions."""

    features: Tensor
    tokens: Tensor
    rois: Tensor


class LatentBackbone(nn.Module):
    """A SparseFormer's latents after the final norm, their last RoIs, its early convolution's map.

    Args:
        encoder: with as many latents as shall be read.
        drop_path: share of a training batch that passes by a block, in the last block; linear from 0 in the first.

    Raises:
        ValueError: it is no SparseFormer.
    """

    def __init__(self, encoder: SparseFormerModel, drop_path: float = 0.0) -> None:
        super().__init__()
        if not isinstance(encoder, SparseFormerModel):
            raise ValueError(
                f"expected a SparseFormer, whose latents have RoIs, not {type(encoder).__name__}: a teacher's patches "
                "are read with `backbone` teacher"
            )
        self.encoder = encoder
        self.width, self.channels = encoder.config.hidden_size, encoder.config.conv_channels
        self.unread = [name for name in HEAD_MODULES if name != "norm" and hasattr(encoder, name)]
        add_drop_path(encoder, drop_path)

    def forward(self, pixel_values: Tensor) -> Seen:
        """See pixels (B, 3, H, W) of any size."""
        seen = self.encoder(pixel_values, output_hidden_states=-1, output_features=True, return_dict=True)
        latents = seen.last_hidden_state[:, self.encoder.config.use_cls :]
        return Seen(seen.features, self.encoder.norm(latents), seen.rois[:, -1])

    def freeze_unread(self) -> None:
        """Freeze the heads on the embedding, which get no gradient."""
        for name in self.unread:
            getattr(self.encoder, name).requires_grad_(False)


class PatchBackbone(nn.Module):
    """A ViT's patches after its final norm, their cells of the grid for RoIs, and a new early convolution's map.

    Args:
        teacher: reads pixels of its own size alone.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        if not isinstance(teacher, Teacher):
            raise ValueError(
                f"expected a teacher, not {type(teacher).__name__}: a SparseFormer has latents, no patches"
            )
        self.teacher, self.width, self.channels = teacher, teacher.hidden_size, CHANNELS
        head = teacher.head_state_dict()
        self.norm = nn.LayerNorm(teacher.hidden_size, eps=teacher.layer_norm_eps)
        self.norm.load_state_dict({kind: head[f"norm.{kind}"] for kind in ("weight", "bias")})
        self.early_conv = EarlyConvolution(CHANNELS)
        cells = torch.arange(teacher.image_size // teacher.patch_size) * teacher.patch_size / teacher.image_size
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        corners = torch.stack([x, y], dim=-1).flatten(0, 1)  # [N, 2]
        side = teacher.patch_size / teacher.image_size
        self.cells: Tensor
        self.register_buffer("cells", torch.cat([corners, corners + side], dim=-1), persistent=False)

    def forward(self, pixel_values: Tensor) -> Seen:
        """See pixels (B, 3, S, S) of the teacher's size, the only one; any other is a ValueError."""
        teacher = self.teacher
        if pixel_values.shape[-2:] != (teacher.image_size, teacher.image_size):
            raise ValueError(
                f"{teacher.name} reads {teacher.image_size} x {teacher.image_size} pixels, not "
                f"{tuple(pixel_values.shape[-2:])}: predict by windows (`mode` slide)"
            )
        tokens = teacher.embed(pixel_values.to(teacher.dtype))
        for index in range(teacher.num_hidden_layers):
            tokens = teacher.run_block(index, tokens)
        patches = self.norm(tokens[:, -teacher.num_patches :])
        return Seen(self.early_conv(pixel_values), patches, self.cells.expand(len(patches), -1, -1))

    def freeze_unread(self) -> None:
        """Freeze what the patches do not go through: text tower, pooling, projection."""
        size = self.teacher.image_size
        tokens = self(torch.zeros(1, 3, size, size, device=self.teacher.device)).tokens
        weights = list(self.teacher.parameters())
        gradients = torch.autograd.grad(tokens.sum(), weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.requires_grad_(gradient is not None)


def add_drop_path(encoder: SparseFormerModel, rate: float) -> None:
    """Let images pass by the branches of cortex blocks in training (stochastic depth); rates grow linearly to ``rate``.

    The random numbers are torch's own of the device, so that a seed set before a step decides them.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"`drop_path` is the share of images that pass by a block, from 0 to below 1, not {rate}")
    depth = len(encoder.cortex)
    for index, block in enumerate(encoder.cortex):
        share = rate * index / max(1, depth - 1)
        if share:
            for branch in ("attn", "mlp"):
                block.get_submodule(branch).register_forward_hook(partial(_drop, 1 - share))


def _drop(kept: float, branch: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
    """Zero what a branch adds for some images, and scale it for the others."""
    if not branch.training:
        return None
    shape = (output.shape[0], *(1 for _ in output.shape[1:]))
    return output * (torch.rand(shape, device=output.device) < kept).to(output.dtype) / kept
