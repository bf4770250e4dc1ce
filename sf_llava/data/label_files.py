"""Classes of pictures that lie in one flat folder, from a text file: ImageNet's validation set as it is distributed.

Four forms are read, told apart by their content:

    ILSVRC2012_val_00000001.JPEG 65                         file and class number from 0, in the order of synset ids
    ILSVRC2012_val_00000001.JPEG n01751748                  file and synset id
    ILSVRC2012_val_00048981,n03995372 85 1 499 272 ...      LOC_val_solution.csv
    n01751748                                               synset ids alone, in the order of the files' names

The development kit's list of numbers alone is refused: they count synsets in an order that only its meta.mat tells.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

NAMES = (
    "val.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
FOLDERS_ABOVE = 4  # LOC_val_solution.csv stands above ILSVRC/Data/CLS-LOC/val
SYNSET = re.compile(r"n\d{8}")


def find_label_file(folder: Path) -> Path | None:
    """Look for a file of classes in a folder and those above it."""
    places = (place / name for place in (folder, *folder.parents[:FOLDERS_ABOVE]) for name in NAMES)
    return next((path for path in places if path.is_file()), None)


def read_label_file(path: Path, pictures: Sequence[str]) -> tuple[list[int], list[str]]:
    """Read the class of every picture.

    Args:
        path: one of the forms above; pictures it names beyond those asked for are passed by.
        pictures: file names, sorted.

    Returns:
        Labels of the pictures, and the names of the classes: synset ids, sorted, or numbers.

    Raises:
        ValueError: another form, numbers of the development kit, a picture named twice or without a class.
    """
    text = path.read_text(encoding="utf-8")
    lines = [re.split(r"[\s,]+", line.strip()) for line in text.splitlines() if line.strip()]
    if lines and lines[0][0] == "ImageId":
        lines.pop(0)
    if not lines:
        raise ValueError(f"{path} is empty: expected a line with file name and class for every picture")
    if all(len(line) == 1 for line in lines):
        classes = _in_order(path, [line[0] for line in lines], len(pictures))
    else:
        classes = _by_name(path, lines, pictures)
    if all(SYNSET.fullmatch(text) for text in classes):
        class_names = sorted(set(classes))
    elif all(text.isdecimal() for text in classes):
        class_names = [str(number) for number in range(max(map(int, classes)) + 1)]
    else:
        odd = next(text for text in classes if not SYNSET.fullmatch(text))
        raise ValueError(f"{path} must name classes by synset ids (n01440764) or by numbers from 0; it has {odd!r}")
    place = {name: index for index, name in enumerate(class_names)}
    return [place[text if text in place else str(int(text))] for text in classes], class_names


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


def _by_name(path: Path, lines: list[list[str]], pictures: Sequence[str]) -> list[str]:
    if short := [number for number, line in enumerate(lines) if len(line) < 2]:
        raise ValueError(f"{path}: entry {short[0] + 1} must be a file name and a class; it is {lines[short[0]][0]!r}")
    stems = [PurePosixPath(line[0]).stem for line in lines]
    if twice := [stem for stem, times in Counter(stems).items() if times > 1]:
        raise ValueError(f"{path}: {len(twice):,} pictures are listed more than once: {', '.join(twice[:3])}")
    class_of = {stem: line[1] for stem, line in zip(stems, lines, strict=True)}
    own = [PurePosixPath(picture).stem for picture in pictures]
    if missing := [picture for picture, stem in zip(pictures, own, strict=True) if stem not in class_of]:
        raise ValueError(f"{path} has no class for {len(missing):,} of {len(own):,} pictures: {', '.join(missing[:3])}")
    return [class_of[stem] for stem in own]
