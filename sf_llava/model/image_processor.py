"""The image processor saved beside every encoder, so that ``AutoImageProcessor`` and pipelines prepare its pictures.

It gives the pixels of :class:`~sf_llava.data.transforms.Preprocessing`; transformers' own would drift by a pixel of the
crop, by a grey level of the resize, and paint transparency white.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil, PretrainedConfig

from sf_llava.data.rgb import INTERPOLATIONS, to_rgb

MAX_RESIZED_PIXELS = 2**26
HUB_OPTIONS = ("push_to_hub", "repo_id", "commit_message", "private", "token", "revision", "create_pr")
"""Of ``save_pretrained``: where a model goes its image processor goes too."""


class SparseFormerImageProcessor(CLIPImageProcessorPil):
    """Resize, crop the centre, normalise: to the pixel as encoders are trained and measured."""

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """Prepare one picture or (nested) lists of them: Pillow pictures of any mode, arrays, tensors."""
        return super().preprocess(_pictures_to_rgb(images), *args, **kwargs)

    def resize(self, image: np.ndarray, size: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Resize (C, H, W).

        Raises:
            ValueError: a strip so thin that its longer side would fill the memory.
        """
        short, long = sorted(image.shape[-2:])
        if size.shortest_edge and size.shortest_edge**2 * long > MAX_RESIZED_PIXELS * short:
            raise ValueError(
                f"a picture of {image.shape[-1]} x {image.shape[-2]} pixels is too thin: with its shorter side at "
                f"{size.shortest_edge} it would have more than {MAX_RESIZED_PIXELS:,}; crop it first"
            )
        return super().resize(image, size, *args, **kwargs)

    def center_crop(self, image: np.ndarray, size: Any, **kwargs: Any) -> np.ndarray:
        """Crop (C, H, W) at the centre; of an odd rest, round as torchvision does."""
        height, width = image.shape[-2:]
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        if top < 0 or left < 0:
            return super().center_crop(image, size, **kwargs)
        return image[..., top : top + size.height, left : left + size.width]


def _pictures_to_rgb(images: Any) -> Any:
    if isinstance(images, (list, tuple)):
        return [_pictures_to_rgb(image) for image in images]
    return to_rgb(images) if isinstance(images, Image.Image) else images


def make_image_processor(config: PretrainedConfig) -> SparseFormerImageProcessor:
    """Make the image processor of an encoder by its configuration, a ``SparseFormerConfig`` say."""
    side = config.image_size
    resized = math.floor(side / config.crop_fraction)
    return SparseFormerImageProcessor(
        size={"height": resized, "width": resized} if config.resize_mode == "squash" else {"shortest_edge": resized},
        crop_size={"height": side, "width": side},
        resample=int(INTERPOLATIONS[config.interpolation]),
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )


def save_image_processor(config: PretrainedConfig, directory: str | Path, options: Mapping[str, Any]) -> None:
    """Save an encoder's image processor beside it; of the options of its ``save_pretrained``, the hub's apply."""
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    make_image_processor(config).save_pretrained(directory, **hub)
