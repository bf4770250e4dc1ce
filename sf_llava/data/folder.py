"""``folder:PATH``: every picture below a folder; for evaluation the first-level folders are the classes.

Pictures in one flat folder take their classes from a file beside or above them (``label_files``).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

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


class FolderImages:
    """Pictures below ``root``, sorted by path; hidden files and folders are left out."""

    def __init__(self, root: Path, paths: PackedStrings) -> None:
        self.root = root
        self.paths = paths  # relative to root

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        try:
            data = (self.root / self.paths[index]).read_bytes()
        except OSError as error:
            raise CorruptImageError(f"{self.describe(index)}: {error.strerror}") from error
        return decode(data, self.describe(index))

    def describe(self, index: int) -> str:
        return printable(self.paths[index])


def open_images(where: str) -> FolderImages:
    """Find every picture below ``where``.

    Raises:
        ValueError: not a folder, or no file below it has the extension of a picture.
    """
    root = Path(where).expanduser()
    if not root.is_dir():
        reason = "it is a file" if root.exists() else "there is no such folder"
        raise ValueError(f"{where!r} cannot be opened as a folder of images: {reason}")
    paths = sorted(_scan(os.path.abspath(root), "", ()))
    if not paths:
        raise ValueError(
            f"no images below {where!r}: looked in it and all its folders for files ending in {' '.join(EXTENSIONS)}"
        )
    return FolderImages(root.absolute(), PackedStrings(paths))


def open_labelled(where: str) -> LabelledImages:
    """Find every picture below ``where``; its class is the first-level folder, or stands in a file of classes.

    Raises:
        ValueError: no pictures, pictures beside folders, a flat folder without a readable file of classes.
    """
    images = open_images(where)
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


def _scan(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield picture paths below ``folder`` relative to the root; a link back to a folder ``above`` is not followed."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                yield from _scan(entry.path, f"{prefix}{entry.name}/", (*above, identity))
            # A broken link stays in the list, to be skipped and named like any other unreadable picture.
            elif entry.name.lower().endswith(EXTENSIONS) and (entry.is_symlink() or entry.is_file()):
                yield prefix + entry.name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a place that may not be read
        return False
