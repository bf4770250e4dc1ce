"""Images with captions, for retrieval, and what every form of such data is put together with.

The CLIP protocol takes the first five captions of an image. Whatever is left out is counted and listed.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sf_llava.data.images import ImageSource
from sf_llava.data.subset import Subset

CAPTIONS_AN_IMAGE = 5


@dataclass(frozen=True)
class CaptionedImages:
    """Images and the captions that belong to each.

    Attributes:
        name: as given.
        source: the images; every one has a caption.
        captions: all captions, those of one image together.
        image_of: the image of each caption.
        notes: sentences on what differs from what the data set should be.
        left_out: reason -> names of the images or captions that were left out for it.
    """

    name: str
    source: ImageSource
    captions: list[str]
    image_of: list[int]
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    def remarks(self) -> list[str]:
        """Notes, and one sentence for each reason to leave something out."""
        counted = [
            f"{len(names):,} {reason}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for reason, names in self.left_out.items()
        ]
        return self.notes + counted

    def take(self, images: Sequence[int]) -> "CaptionedImages":
        """Keep only ``images`` (ascending indices) and their captions.

        Raises:
            ValueError: none is left.
        """
        if not len(images):
            raise ValueError(f"{self.name}: no image is left to evaluate on")
        new_index = {int(image): index for index, image in enumerate(images)}
        kept = [(text, new_index[i]) for text, i in zip(self.captions, self.image_of, strict=True) if i in new_index]
        captions, image_of = [text for text, _ in kept], [image for _, image in kept]
        source = Subset(self.source, np.asarray(images))
        return CaptionedImages(self.name, source, captions, image_of, self.notes, self.left_out)


def gather(
    name: str,
    items: Iterable[tuple[Hashable, str, Sequence[object]]],
    left_out: dict[str, list[str]],
) -> tuple[list[int], list[str], list[int]]:
    """Collect captions image by image: the first five of each; blank ones and images without any are left out.

    Args:
        name: of the data set, for messages.
        items: (id, description, captions) of every image.
        left_out: reasons and names are added here.

    Returns:
        Indices of the items that stay, captions, and the image of each caption (an index into what stays).

    Raises:
        ValueError: an id occurs twice, or no caption at all.
    """
    kept: list[int] = []
    captions: list[str] = []
    image_of: list[int] = []
    ids: Counter[Hashable] = Counter()
    for index, (identity, description, texts) in enumerate(items):
        if not isinstance(identity, Hashable):
            raise ValueError(f"{name}: the id of image {description} must be a number or a text; it is {identity!r}")
        ids[identity] += 1
        good = [text.strip() for text in texts if isinstance(text, str) and _is_text(text)]
        if len(good) < len(texts):
            left_out.setdefault("captions that are blank or no text are left out, of", []).append(description)
        if len(good) > CAPTIONS_AN_IMAGE:
            reason = f"images have more than {CAPTIONS_AN_IMAGE} captions, of which the first {CAPTIONS_AN_IMAGE} count"
            left_out.setdefault(reason, []).append(description)
        if not good:
            left_out.setdefault("images without any caption are left out", []).append(description)
            continue
        for text in good[:CAPTIONS_AN_IMAGE]:
            captions.append(text)
            image_of.append(len(kept))
        kept.append(index)
    check_unique(name, "image", ids)
    if not kept:
        raise ValueError(f"{name} has no image with a caption ({sum(ids.values())} images without)")
    return kept, captions, image_of


def _is_text(value: object) -> bool:
    """Whether a caption can be asked about: not blank, and without halves of characters, which no tokenizer takes."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def check_unique(name: str, what: str, ids: Counter) -> None:
    """Refuse ids that occur twice: which captions belong to which image would be a guess."""
    if twice := [str(identity) for identity, count in ids.items() if count > 1]:
        raise ValueError(f"{name}: {len(twice)} {what} ids occur more than once: {', '.join(twice[:5])}; mend the file")
