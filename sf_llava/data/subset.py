"""A part of an image source: the pictures held out for validation, and the rest."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sf_llava.data.images import ImageSource
from sf_llava.data.sampler import generator_of


@dataclass(frozen=True)
class Subset:
    """The pictures of ``source`` at ``indices``, in that order."""

    source: ImageSource
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def find(self, index: int) -> tuple[ImageSource, int]:
        """Say which source holds picture ``index``, and where."""
        return self.source, int(self.indices[index])

    def load(self, index: int) -> Image.Image:
        return self.source.load(int(self.indices[index]))

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.indices[index]))


def hold_out(source: ImageSource, count: int, seed: int) -> tuple[Subset, Subset]:
    """Split a source into (training, held-out) at random by ``seed``; at most a tenth is held out.

    Raises:
        ValueError: too few pictures to hold any out.
    """
    count = min(count, len(source) // 10)
    if count < 1:
        raise ValueError(f"{len(source)} images are too few to hold any out for validation; name them with `val_data`")
    order = torch.randperm(len(source), generator=generator_of(seed)).numpy()
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))
