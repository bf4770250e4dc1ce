"""Data sets by name: one place that knows which names exist and which module opens them."""

import importlib
import os

from sf_llava.data.images import EXTENSIONS, ImageSource, LabelledImages

MODULES = {
    "folder": "sf_llava.data.folder",
    "parquet": "sf_llava.data.parquet",
    "webdataset": "sf_llava.data.shards",
    "hub": "sf_llava.data.hub",
    "mini": "sf_llava.data.drawn",
}
VALID = (
    "folder:PATH, parquet:PATH_OR_GLOB, webdataset:PATTERN, hub:NAME[:SPLIT], mini, mini:diagrams, mini:both, "
    "or the path of a folder, a .parquet file or a .tar file"
)


def open_images(name: str) -> ImageSource:
    """Open a data set by name, without labels: they are not read, even where the data set has them.

    Args:
        name: ``folder:PATH``, ``parquet:PATH_OR_GLOB``, ``webdataset:PATTERN``, ``hub:NAME[:SPLIT]``, ``mini``,
            ``mini:diagrams``, ``mini:both``, or an existing path.

    Raises:
        ValueError: an unknown name, or a data set without images.
    """
    kind, where = resolve(name)
    return importlib.import_module(MODULES[kind]).open_images(where)


def open_labelled(name: str) -> LabelledImages:
    """Open a data set by name with its classes, for evaluation. Names and errors as in ``open_images``."""
    kind, where = resolve(name)
    return importlib.import_module(MODULES[kind]).open_labelled(where)


def resolve(name: str) -> tuple[str, str]:
    """Split a name into its kind and the rest; say what kind of data a bare path holds."""
    kind, colon, where = name.partition(":")
    if kind in MODULES and (bool(where) or (kind == "mini" and not colon)):
        return kind, where
    path = os.path.expanduser(name)
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path) and suffix in (".parquet", ".tar"):
        return {".parquet": "parquet", ".tar": "webdataset"}[suffix], name
    if os.path.isdir(path):
        return _kind_of_folder(path), name
    hint = f"; {name} is a file, and only .parquet and .tar files are data sets" if os.path.isfile(path) else ""
    raise ValueError(f"unknown data set {name!r}{hint}: expected {VALID}")


def _kind_of_folder(path: str) -> str:
    endings = {"parquet": (".parquet",), "webdataset": (".tar",), "folder": EXTENSIONS}
    with os.scandir(path) as entries:
        names = [entry.name.lower() for entry in entries if not entry.name.startswith(".")]
    kinds = [kind for kind, ends in endings.items() if any(name.endswith(ends) for name in names)]
    if len(kinds) > 1:
        raise ValueError(f"{path} holds data of several kinds: say which is meant, {' or '.join(kinds)}:{path}")
    return kinds[0] if kinds else "folder"
