"""Photographs with what may be said of each, and the batches of views that a small CLIP learns from.

Letters: B views, S pixels a side, K patch tokens that a view keeps, R of them that the guide is asked about, C its
channels, L texts, T their tokens.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sf_llava.data import CorruptImageError, ImageSource, LabelledImages
from sf_llava.data.joined import Joined
from sf_llava.data.sampler import generator_of
from sf_llava.data.transforms import BootstrapTransform, Preprocessing
from sf_llava.mini.training.guide import GuideMaps, see
from sf_llava.retrieval.captions import CaptionedImages

TEMPLATES = ("a photo of a {}", "a picture of a {}", "an image of a {}", "there is a {} in the photo", "a {}")
RARE = 2  # words of fewer pictures' texts are unknown ones
LONGEST = 40  # words of a text
ASKED = 16  # R
CROP = (0.35, 1.0)  # share of a picture that a view shows
_GRID = torch.stack(torch.meshgrid(*[(torch.arange(4) + 0.5) / 4] * 2, indexing="xy"), dim=2).view(16, 2)


@dataclass(frozen=True)
class Photographs:
    """Pictures of several sets, and what may be said of each.

    Attributes:
        source: the pictures.
        texts: of every picture in their order; none where nothing is known of it.
        groups: pictures of one group mean the same by their texts (those of a class), and are right for each other.
    """

    source: ImageSource
    texts: Sequence[Sequence[str]]
    groups: Sequence[int]

    def __len__(self) -> int:
        return len(self.texts)


def gather(
    captioned: Sequence[CaptionedImages], labelled: Sequence[LabelledImages], unlabelled: Sequence[ImageSource]
) -> Photographs:
    """Put the sets one behind the other: captions, classes in sentences, pictures without text."""
    texts: list[list[str]] = []
    groups: list[int] = []
    for images in captioned:
        own: list[list[str]] = [[] for _ in range(len(images))]
        for caption, image in zip(images.captions, images.image_of, strict=True):
            own[image].append(caption)
        texts += own
        groups += range(len(groups), len(groups) + len(own))
    for classes in labelled:
        first = max(groups, default=-1) + 1
        sentences = [[template.format(spoken(name)) for template in TEMPLATES] for name in classes.class_names]
        texts += [sentences[label] for label in classes.labels]
        groups += [first + label for label in classes.labels]
    count = sum(map(len, unlabelled))
    texts += [[] for _ in range(count)]
    groups += [-1] * count
    sources = [*(images.source for images in captioned), *(classes.source for classes in labelled), *unlabelled]
    return Photographs(Joined(sources), texts, groups)


def spoken(class_name: str) -> str:
    """A class name as it is said: the first of its synonyms, without underscores."""
    return class_name.partition(",")[0].replace("_", " ").strip()


def words_of(texts: Sequence[Sequence[str]]) -> list[str]:
    """The words that at least two pictures' texts have, sorted."""
    counts = Counter(word for own in texts for word in set(re.findall(r"\w+|[^\w\s]+", " ".join(own).lower())))
    return sorted(word for word, count in counts.items() if count >= RARE)


def tokenise(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids of texts, (L, T)."""
    ids = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt").input_ids
    assert isinstance(ids, Tensor)
    return ids


@dataclass
class Views:
    """What one step sees.

    Attributes:
        images: (B, S, S, 3) uint8.
        kept: (B, K) patches in raster order's numbers that are looked at, in random order.
        whole: (B, C) the guide's mean over each view; None without a guide.
        parts: (B, R, C) the guide's features at the first R patches of ``kept``; None without.
        input_ids: (L, T) of the L views that have a text.
        described: (B,) bool, which.
        groups: (L,) equal where they mean the same.
    """

    images: Tensor
    kept: Tensor
    whole: Tensor | None
    parts: Tensor | None
    input_ids: Tensor
    described: Tensor
    groups: Tensor

    def to(self, device: torch.device) -> "Views":
        """The same on a device."""
        return replace(self, **{name: part.to(device) for name, part in vars(self).items() if part is not None})


class ViewMaker:
    """Makes the views of a step; a function of the seed and the step.

    Args:
        photographs: to look at.
        tokenizer: of the texts.
        preprocessing: its size.
        side: patches a side.
        maps: of the guide, or None.
        batch_size: B.
        seed: of every choice.
    """

    def __init__(
        self, photographs: Photographs, tokenizer: Any, preprocessing: Preprocessing, side: int,
        maps: GuideMaps | None, batch_size: int, seed: int,
    ) -> None:  # fmt: skip
        self.photographs, self.tokenizer, self.maps = photographs, tokenizer, maps
        self.transform = BootstrapTransform(preprocessing, scale=CROP)
        self.side, self.batch_size, self.seed = side, batch_size, seed
        self.per_epoch = len(photographs) // batch_size
        self.corrupt: set[str] = set()
        if not self.per_epoch:
            raise ValueError(f"{len(photographs)} photographs do not fill one batch of {batch_size}")

    def __call__(self, step: int, keep: int) -> Views:
        """Make the views of ``step``, ``keep`` patches of each.

        A picture that cannot be decoded is noted, and another of the same set stands for it.

        Raises:
            ValueError: too few can be decoded.
        """
        epoch, part = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.photographs))
        rows = np.roll(order, -part * self.batch_size)
        images, kept, texts, groups, seen = [], [], [], [], []
        for index in map(int, rows):
            generator = generator_of(self.seed, epoch, index)
            try:
                image = self.photographs.source.load(index)
            except CorruptImageError as error:
                self.corrupt.add(str(error))
                continue
            view = self.transform.draw(*image.size, generator)
            images.append(self.transform.render(image, view))
            kept.append(torch.randperm(self.side**2, generator=generator)[:keep])
            own = self.photographs.texts[index]
            texts.append(own[int(torch.randint(len(own), (), generator=generator))] if own else "")
            groups.append(self.photographs.groups[index])
            if self.maps is not None:
                asked = kept[-1][:ASKED]
                centres = (torch.stack([asked % self.side, asked // self.side], dim=1) + 0.5) / self.side
                seen.append(see(self.maps.read(index), image.size, view, torch.cat([_GRID, centres])))
            if len(images) == self.batch_size:
                break
        else:
            raise ValueError(f"fewer than {self.batch_size} of {len(self.photographs)} photographs can be decoded")
        features = torch.stack(seen) if seen else None
        described = torch.tensor([bool(text) for text in texts])
        return Views(
            torch.stack(images),
            torch.stack(kept),
            None if features is None else features[:, : len(_GRID)].mean(dim=1),
            None if features is None else features[:, len(_GRID) :],
            tokenise(self.tokenizer, [text for text in texts if text] or ["-"])[: int(described.sum())],
            described,
            torch.tensor(groups)[described],
        )
