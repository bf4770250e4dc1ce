"""Which view of which picture an item of a batch is, for whoever keeps something for each."""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from sf_llava.data.bootstrap_images import BootstrapImages, collate


class View(NamedTuple):
    """One view: its ``number`` among those of all pictures and epochs, the ``digest`` of its pixels (16 bytes)."""

    number: int
    digest: bytes


@dataclass(frozen=True)
class ViewedImages(Dataset):
    """``images`` whose items also say which ``view`` they are.

    Views that are not drawn at random have the number of their picture, in whatever epoch; others are numbered on
    through the epochs. An unreadable picture has its own number, and the pixels of the one that stands for it.
    """

    images: BootstrapImages

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return one view of one picture; see :class:`BootstrapImages`."""
        epoch, index = key
        item = self.images[key]
        number = (epoch * len(self) if self.images.transform.is_random else 0) + index
        digest = hashlib.sha256(item["pixels"].contiguous().numpy().data).digest()[:16]
        return item | {"view": View(number, digest)}


def collate_views(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items as :func:`collate` does, and list their ``views``."""
    return collate(items) | {"views": [item["view"] for item in items]}
