"""Classes of pictures that lie in one flat folder, from a text file: ImageNet's validation set as it is distributed.

Four forms are read, told apart by their content:

    ILSVRC2012_val_00000001.JPEG 65                         file and class number from 0, in the order of synset ids
    ILSVRC2012_val_00000001.JPEG n01751748                  file and synset id
    ILSVRC2012_val_00048981,n03995372 85 1 499 272 ...      LOC_val_solution.csv
    n01751748                                               synset ids alone, in the order of the files' names

The class is the last word of a line, after spaces, a tab or a comma: file names may hold these too. The development
kit's list of numbers alone is refused: they count synsets in an order that only its meta.mat tells.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sf_llava import files
from sf_llava.data.images import EXTENSIONS, number_names

NAMES = (
    "val.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
FOLDERS_ABOVE = 4  # LOC_val_solution.csv stands above ILSVRC/Data/CLS-LOC/val
SYNSET = re.compile(r"n[0-9]{8}")
NUMBER = re.compile(r"[0-9]{1,18}")
BOXES = re.compile(r"(?P<name>.+?),\s*(?P<label>n[0-9]{8})(?:\s+-?[0-9]+){4}(?:\s+n[0-9]{8}(?:\s+-?[0-9]+){4})*")
NAME_AND_CLASS = re.compile(r"(?P<name>.*[^\s,])[\s,]+(?P<label>[^\s,]+)")


def find_label_file(folder: Path) -> Path | None:
    """Look for a file of classes in a folder and those above it."""
    places = (place / name for place in (folder, *folder.parents[:FOLDERS_ABOVE]) for name in NAMES)
    return next((path for path in places if os.path.lexists(path)), None)


def read_label_file(path: Path, pictures: Sequence[str]) -> tuple[list[int], list[str]]:
    """Read the class of every picture.

    Args:
        path: one of the forms above; pictures it names beyond those asked for are passed by.
        pictures: file names, sorted.

    Returns:
        Labels of the pictures, and the names of the classes: synset ids, sorted, or numbers.

    Raises:
        ValueError: another form, numbers of the development kit, a picture named twice or without a class.
        OSError: it cannot be read, or is no regular file.
    """
    lines = [line.strip() for line in files.read_text(path).split("\n") if line.strip()]
    if lines and re.split(r"[\s,]", lines[0])[0] == "ImageId":
        lines.pop(0)
    if not lines:
        raise ValueError(f"{path} is empty: expected a line with file name and class for every picture")
    if not any(re.search(r"[\s,]", line) for line in lines):
        classes = _in_order(path, lines, len(pictures))
    else:
        classes = _by_name(path, lines, pictures)
    if all(SYNSET.fullmatch(text) for text in classes):
        class_names = sorted(set(classes))
        place = {name: index for index, name in enumerate(class_names)}
        return [place[text] for text in classes], class_names
    if all(NUMBER.fullmatch(text) for text in classes):
        return (labels := [int(text) for text in classes]), number_names(labels)
    odd = next(text for text in classes if not SYNSET.fullmatch(text))
    raise ValueError(f"{path} must name classes by synset ids (n01440764) or by numbers from 0; it has {odd!r}")


def _in_order(path: Path, classes: list[str], count: int) -> list[str]:
    if not all(SYNSET.fullmatch(text) for text in classes):
        raise ValueError(
            f"{path} numbers classes in the order of the development kit's meta.mat, not of the sorted synset ids, and "
            "cannot be translated without it: give val.txt (file name and number from 0), LOC_val_solution.csv, or a "
            "list of synset ids in its place, or sort the pictures into one folder a class"
        )
    if len(classes) != count:
        raise ValueError(
            f"{path} lists {len(classes):,} classes without file names, but there are {count:,} pictures: which is "
            "whose would be a guess; give a file with names (val.txt)"
        )
    return classes


def _by_name(path: Path, lines: list[str], pictures: Sequence[str]) -> list[str]:
    by_name, by_stem = defaultdict(list), defaultdict(list)
    for number, line in enumerate(lines, 1):
        found = BOXES.fullmatch(line) or NAME_AND_CLASS.fullmatch(line)
        if found is None:
            raise ValueError(f"{path}: entry {number} must be a file name and a class; it is {line!r}")
        name = PurePosixPath(found["name"].strip('"')).name
        by_name[name].append(found["label"])
        by_stem[_stem(name)].append(found["label"])
    pictures_of = defaultdict(list)
    for picture in pictures:
        pictures_of[_stem(picture)].append(picture)
    # By the whole name; by its stem (LOC_val_solution.csv, converted pictures) where only one picture has it.
    classes = [
        by_name.get(picture) or (by_stem[stem] if len(pictures_of[stem := _stem(picture)]) == 1 else [])
        for picture in pictures
    ]
    if twice := [picture for picture, own in zip(pictures, classes, strict=True) if len(own) > 1]:
        raise ValueError(f"{path}: {len(twice):,} pictures are listed more than once: {', '.join(twice[:3])}")
    if missing := [picture for picture, own in zip(pictures, classes, strict=True) if not own]:
        raise ValueError(
            f"{path} has no class for {len(missing):,} of {len(pictures):,} pictures: {', '.join(missing[:3])}"
        )
    return [own[0] for own in classes]


def _stem(name: str) -> str:
    """A file's name without a picture's ending; dots may be part of it."""
    stem, _, ending = name.rpartition(".")
    return stem if f".{ending.lower()}" in EXTENSIONS else name
