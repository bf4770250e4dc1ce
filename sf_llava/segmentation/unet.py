"""A plain U-Net, for comparison at equal cost: what convolutions from scratch reach on the same pictures.

Letters: B images, H x W pixels, L classes.
"""

import itertools
from bisect import bisect_right

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sf_llava.model.costs import count_multiply_adds

DEPTH = 4
GROUP = 8


class UNet(nn.Module):
    """Four times down and up, two 3x3 convolutions a level, group norm, skips; it starts at half the resolution.

    Args:
        num_classes: L.
        width: channels of the first level, at least 8; they double with every level.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(DEPTH + 1)]
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList([_level(width, width), *(_level(before, after) for before, after in pairs)])
        self.up = nn.ModuleList([_level(before + after, before) for before, after in reversed(pairs)])
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to logits (B, H/2, W/2, L)."""
        maps = [self.down[0](self.stem(pixel_values))]
        for level in self.down[1:]:
            maps.append(level(F.max_pool2d(maps[-1], 2, ceil_mode=True)))
        seen = maps.pop()
        for level in self.up:
            skip = maps.pop()
            seen = level(torch.cat([skip, F.interpolate(seen, skip.shape[-2:], mode="bilinear")], dim=1))
        return self.classifier(seen).permute(0, 2, 3, 1)


def _level(before: int, after: int) -> nn.Sequential:
    parts = []
    for channels in (before, after):
        parts += [nn.Conv2d(channels, after, 3, padding=1), nn.GroupNorm(_groups(after), after), nn.GELU()]
    return nn.Sequential(*parts)


def _groups(channels: int) -> int:
    """Count the most groups of equal size, of at least 8 channels each."""
    return next(groups for groups in range(max(1, channels // GROUP), 0, -1) if channels % groups == 0)


def unet_of_cost(num_classes: int, image_size: int, multiply_adds: int) -> UNet:
    """Build the widest U-Net that costs no more multiply-adds for a square picture than this, or else the narrowest."""

    def cost(width: int) -> int:
        with torch.device("meta"):
            return count_multiply_adds(UNet(num_classes, width), image_size)

    least = GROUP
    while cost(2 * least) <= multiply_adds:
        least *= 2
    return UNet(num_classes, least + bisect_right(range(least + 1, 2 * least), multiply_adds, key=cost))
