"""Unlabelled pictures for bootstrapping: every item a function of (seed, epoch, index), unreadable pictures replaced.

images = BootstrapImages(open_images("folder:train"), BootstrapTransform(teacher.preprocessing), seed=0)
sampler = BootstrapSampler(len(images), batch_size=128, seed=0, start_step=step)
for batch in DataLoader(images, batch_sampler=sampler, collate_fn=collate, num_workers=8):
    pixel_values = images.normalise(batch["pixels"].to(device))

Letters: B images, S pixels a side.
"""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from sf_llava.data.images import CorruptImageError, ImageSource
from sf_llava.data.loading import choose_workers
from sf_llava.data.sampler import generator_of
from sf_llava.data.transforms import BootstrapTransform

# So many unreadable pictures in a row mean that something else is wrong: a disc, a mount, the wrong folder.
MAX_SKIPPED = 100


class BootstrapImages(Dataset):
    """Pictures of ``source``, indexed by (epoch, index) pairs; nothing about them depends on workers or on history.

    Args:
        source: where the pictures come from.
        transform: from an RGB picture and a generator to bytes.
        seed: of every random number.

    Raises:
        ValueError: none of the first pictures can be read.
    """

    def __init__(self, source: ImageSource, transform: BootstrapTransform, seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.load(0)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_images(self) -> int:
        """The same; None for a stream."""
        return len(self)

    def choose_workers(self, asked: int | None, processes: int) -> int:
        """Say how many data loading processes each of ``processes`` gets."""
        return choose_workers(asked)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return one view of one picture.

        Returns:
            ``pixels`` (S, S, 3) uint8; ``index``, the picture's place in the source; ``skipped``, one line for every
            unreadable picture between the index asked for and the one returned.
        """
        epoch, index = key
        image, found, skipped = self.load(index)
        pixels = self.transform(image, generator_of(self.seed, epoch, index))
        return {"pixels": pixels, "index": found, "skipped": skipped}

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn (B, S, S, 3) uint8 into ``pixel_values`` (B, 3, S, S) float32, on the device where they are."""
        return self.transform.preprocessing.normalise_pixels(pixels)

    def pixel_values(self, indices: Iterable[int]) -> Tensor:
        """Give views of the pictures at ``indices`` as (B, 3, S, S) float32: those of the first epoch."""
        return self.normalise(torch.stack([self[0, index]["pixels"] for index in indices]))

    def load(self, index: int) -> tuple[Image.Image, int, list[str]]:
        """Load picture ``index``, or the next readable one; return it, its index, and what was skipped."""
        skipped: list[str] = []
        for found in range(index, index + min(MAX_SKIPPED, len(self))):
            try:
                return self.source.load(found % len(self)), found % len(self), skipped
            except CorruptImageError as error:
                skipped.append(str(error))
        raise ValueError(
            f"{len(skipped)} pictures in a row cannot be read (of {len(self)}): {'; '.join(skipped[:3])}"
            f"{' ...' if len(skipped) > 3 else ''}. Check the data set"
        )


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items to ``pixels`` (B, S, S, 3) uint8 and ``index`` (B,) int64; join their ``skipped``."""
    return {
        "pixels": default_collate([item["pixels"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "skipped": [line for item in items for line in item["skipped"]],
    }
