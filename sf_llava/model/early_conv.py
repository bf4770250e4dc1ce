"""Early convolution: pixels to a channel-normalised feature map at a quarter of the resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PART_BYTES = 2**24
"""Of the convolution's output at a time, on a CPU: larger ones come from the system page by page and go back to it,
which takes a sixth of the time."""


class EarlyConvolution(nn.Module):
    """Convolve 7x7 with stride 2, pool, rectify, normalise the channels.

    Unlike the official code, all is channels-last, max-pooling comes before the ReLU (they commute, and a quarter
    is left to rectify), and the parameter-free channel normalisation is a layer norm over the last dimension.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalised pixels to (B, H/4, W/4, C) features, channels last."""
        if _may_be_parted(pixel_values):
            height, width = (side // 2 for side in pixel_values.shape[-2:])
            images = max(1, PART_BYTES // max(1, self.channels * height * width * pixel_values.element_size()))
            if images < pixel_values.shape[0]:
                return torch.cat([self._convolve(part) for part in pixel_values.split(images)])
        return self._convolve(pixel_values)

    def _convolve(self, pixel_values: Tensor) -> Tensor:
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features = F.max_pool2d(self.conv(pixel_values), kernel_size=3, stride=2, padding=1).relu()
        return F.layer_norm(features.permute(0, 2, 3, 1), (self.channels,), eps=1e-5)


def _may_be_parted(pixel_values: Tensor) -> bool:
    """Tell whether nothing is kept for a backward, and no graph is made that must serve other sizes."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return pixel_values.device.type == "cpu" and not torch.is_grad_enabled() and not is_traced
