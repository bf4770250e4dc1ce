"""Folders of pictures and masks: ADE20K's layout, and any two folders with files of the same names.

ROOT/images/training/ADE_train_00000001.jpg        ROOT/annotations/training/ADE_train_00000001.png
ROOT/images/a/1.jpg                                 ROOT/masks/a/1.png
"""

import os
from collections.abc import Mapping
from pathlib import Path

from sf_llava import files
from sf_llava.data.folder import FolderImages
from sf_llava.data.images import EXTENSIONS, PackedStrings, printable
from sf_llava.data.masks import Labels, MaskedImages
from sf_llava.data.paths import walk
from sf_llava.weights.fit import some

ADE20K_SPLITS = {"train": "training", "validation": "validation"}
ADE20K_CLASSES = 150
ADE20K_NAMES = "objectInfo150.txt"
MASK_FOLDERS = ("masks", "annotations", "labels")
CLASSES_FILE = "classes.txt"


def open_ade20k(where: str, split: str) -> MaskedImages:
    """Open a split of ADE20K's scene parsing benchmark: 150 classes, numbered from 1 in its masks.

    Raises:
        ValueError: its folders are not there, or hold no pair.
    """
    root = Path(where).expanduser()
    folder = ADE20K_SPLITS[split]
    return pair_folders(root / "images" / folder, root / "annotations" / folder, Labels(_ade20k_names(root), first=1))


def _ade20k_names(root: Path) -> tuple[str, ...]:
    """Read the names of the 150 classes from the file beside them, the last column; without it, number them."""
    if not (root / ADE20K_NAMES).is_file():
        return tuple(str(number) for number in range(1, ADE20K_CLASSES + 1))
    lines = [line for line in files.read_text(root / ADE20K_NAMES).split("\n")[1:] if line.strip()]
    if len(lines) != ADE20K_CLASSES:
        raise ValueError(f"{root / ADE20K_NAMES} names {len(lines)} classes: expected {ADE20K_CLASSES}")
    return tuple(line.rstrip().split("\t")[-1].split(",")[0] for line in lines)


def open_folders(where: str, labels: Labels | None) -> MaskedImages:
    """Open ``ROOT/images`` with ``ROOT/masks`` (or annotations, labels); ``ROOT/classes.txt`` names the classes.

    Raises:
        ValueError: folders or class names are missing, or there is no pair.
    """
    root = Path(where).expanduser()
    masks = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
    if masks is None or not (root / "images").is_dir():
        raise ValueError(f"{where} is no folder with images/ and {'/, '.join(MASK_FOLDERS)}/ in it")
    if labels is None:
        labels = Labels(read_class_names(root / CLASSES_FILE))
    return pair_folders(root / "images", masks, labels)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read one class a line.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"the classes have no names: write {path}, one a line, or give `classes`")
    return tuple(line.strip() for line in files.read_text(path).split("\n") if line.strip())


def pair_folders(images: Path, masks: Path, labels: Labels) -> MaskedImages:
    """Pair pictures and masks that have the same path below their folders, but for the extension.

    Raises:
        ValueError: a folder is missing or cannot be read, two files would be one, or there is no pair.
    """
    pictures, others = _by_stem(images), _by_stem(masks)
    common = sorted(pictures.keys() & others.keys())
    left_out = [f"{printable(pictures[stem])} (no mask)" for stem in sorted(pictures.keys() - common)]
    left_out += [f"{printable(others[stem])} (no picture)" for stem in sorted(others.keys() - common)]
    if not common:
        raise ValueError(
            f"no picture in {images} has a mask of its name in {masks}"
            + (f"; {len(left_out)} files have no partner: {some(left_out)}" if left_out else "; both are empty")
        )
    sources = [
        FolderImages(folder, PackedStrings([found[stem] for stem in common]))
        for folder, found in ((images, pictures), (masks, others))
    ]
    return MaskedImages(sources[0], sources[1], labels, tuple(left_out))


def _by_stem(folder: Path) -> Mapping[str, str]:
    """List the pictures below a folder by their path without extension."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found: dict[str, str] = {}
    for path in walk(str(folder))[0]:
        stem, extension = os.path.splitext(path)
        if extension.lower() in EXTENSIONS:
            if stem in found:
                raise ValueError(f"{folder} holds {printable(found[stem])} and {printable(path)}: keep one of them")
            found[stem] = path
    return found
