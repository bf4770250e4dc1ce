"""Pictures with masks by name: ADE20K's layout, folders, parquet files, hub data sets, the drawn world."""

from pathlib import Path

from sf_llava import catalogue
from sf_llava.data import hub, mask_folders, parquet
from sf_llava.data.masks import Labels, MaskedSource

OWN_SPLITS = "ade20k:ROOT, {}"
OTHERS = "folder:ROOT (with images/ and masks/), parquet:PATH_OR_GLOB, hub:NAME[:SPLIT]"


def open_masked(name: str, split: str, labels: Labels | None = None) -> MaskedSource:
    """Open pictures with masks by name.

    Args:
        name: ``ade20k:ROOT`` or ``mini`` (which have splits of their own), ``folder:ROOT``, ``parquet:PATH_OR_GLOB``,
            ``hub:NAME[:SPLIT]``.
        split: ``train`` or ``validation``.
        labels: how the masks of a folder, parquet file or hub data set are read; the others know it.

    Raises:
        ValueError: an unknown name, nothing there, or labels that are missing or known already.
    """
    kind, _, where = name.partition(":")
    if (opener := catalogue.MASKED.find(kind)) is not None or (kind == "ade20k" and where):
        if labels is not None:
            raise ValueError(f"{name} brings its own classes: leave `classes` and `ignored` out")
        return opener(where, split) if opener is not None else mask_folders.open_ade20k(where, split)
    if kind == "folder" and where:
        return mask_folders.open_folders(where, labels)
    if kind in ("parquet", "hub") and where:
        if labels is None:
            raise ValueError(f"the masks of {name} hold numbers without names: give `classes`")
        return parquet.open_masked(where, labels) if kind == "parquet" else hub.open_masked(where, labels)
    known = OWN_SPLITS.format(catalogue.MASKED.usage)
    raise ValueError(f"unknown pictures with masks {name!r}: expected {known}, {OTHERS}")


def has_splits(name: str) -> bool:
    """Tell whether one name stands for training and validation pictures."""
    kind = name.partition(":")[0]
    return kind == "ade20k" or catalogue.MASKED.find(kind) is not None


def parse_labels(classes: str | None, ignored: list[int]) -> Labels | None:
    """Read how masks are read from what a user gives.

    Args:
        classes: names with commas between, or a file with one a line; None: the data's own.
        ignored: numbers in the masks that are not counted.

    Raises:
        ValueError: no such file, one class alone, or ``ignored`` without ``classes``.
    """
    if classes is None:
        if ignored:
            raise ValueError("`ignored` needs `classes`: the data's own masks know what they do not count")
        return None
    if Path(classes).is_file():
        return Labels(mask_folders.read_class_names(Path(classes)), ignored=frozenset(ignored))
    names = tuple(part.strip() for part in classes.split(",") if part.strip())
    if len(names) < 2:
        raise ValueError(f"`classes` {classes!r} is no file, and no list of names with commas between")
    return Labels(names, ignored=frozenset(ignored))
