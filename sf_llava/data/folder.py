"""``folder:PATH``: every picture below a folder; for evaluation the first-level folders are the classes.

Pictures in one flat folder take their classes from a file beside or above them (``label_files``).
"""

import os
from pathlib import Path

from PIL import Image

from sf_llava import files
from sf_llava.data.images import (
    EXTENSIONS,
    CorruptImageError,
    LabelledImages,
    PackedStrings,
    decode,
    printable,
    split_of,
)
from sf_llava.data.label_files import NAMES, find_label_file, read_label_file
from sf_llava.data.paths import walk


class FolderImages:
    """Pictures below ``root``, sorted by path; hidden files and folders are left out."""

    def __init__(self, root: Path, paths: PackedStrings) -> None:
        self.root = root
        self.paths = paths  # relative to root

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        try:
            return files.read_bytes(self.root / self.paths[index])
        except OSError as error:
            raise CorruptImageError(f"{self.describe(index)}: {error.strerror}") from error

    def load(self, index: int) -> Image.Image:
        return decode(self.read(index), self.describe(index))

    def describe(self, index: int) -> str:
        return printable(self.paths[index])


def open_images(where: str) -> FolderImages:
    """Find every picture below ``where``; a folder that links lead to as well is read once.

    Raises:
        ValueError: not a folder, one that cannot be read, or no file below it has the extension of a picture.
    """
    return _find(where)[0]


def _find(where: str) -> tuple[FolderImages, list[tuple[str, str]]]:
    """Find the pictures, and the links that were not followed (see ``walk``)."""
    root = os.path.abspath(os.path.expanduser(where))
    if not os.path.isdir(root):
        reason = "it is a file" if os.path.exists(root) else "there is no such folder"
        raise ValueError(f"{where!r} cannot be opened as a folder of images: {reason}")
    found, repeated = walk(root)
    # Broken links and pipes stay in the list, to be skipped and named like any other unreadable picture.
    paths = sorted(path for path in found if path.lower().endswith(EXTENSIONS))
    if not paths:
        raise ValueError(
            f"no images below {where!r}: looked in it and all its folders for files ending in {' '.join(EXTENSIONS)}"
        )
    return FolderImages(Path(root), PackedStrings(paths)), repeated


def open_labelled(where: str) -> LabelledImages:
    """Find every picture below ``where``; its class is the first-level folder, or stands in a file of classes.

    Raises:
        ValueError: no pictures, pictures beside folders, a flat folder without a readable file of classes, a folder
            that links put into two classes.
    """
    images, repeated = _find(where)
    for link, first in repeated:
        if first and link.split("/")[0] != first.split("/")[0]:
            raise ValueError(
                f"{where!r}: {link!r} links to the same folder as {first!r}, so that its pictures would have two "
                "classes: remove the link"
            )
    if all("/" not in path for path in images.paths):
        return _label_flat(where, images)
    folders = []
    for path in images.paths:
        folder, slash, _ = path.partition("/")
        if not slash:
            raise ValueError(f"{where!r} needs one folder a class, but {path!r} lies directly in it")
        folders.append(folder)
    class_names = sorted(set(folders))
    if all(split_of(name) == name for name in class_names):
        raise ValueError(
            f"{where!r} holds splits ({', '.join(class_names)}), not classes: name one, folder:{where}/{class_names[0]}"
        )
    index_of = {name: index for index, name in enumerate(class_names)}
    return LabelledImages(images, [index_of[folder] for folder in folders], class_names)


def _label_flat(where: str, images: FolderImages) -> LabelledImages:
    path = find_label_file(images.root)
    if path is None:
        raise ValueError(
            f"{where!r} needs one folder a class, or a file of classes beside its pictures: {', '.join(NAMES)}"
        )
    return LabelledImages(images, *read_label_file(path, list(images.paths)))
