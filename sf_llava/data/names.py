"""Data sets by name: one place that knows which names exist and which module opens them."""

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sf_llava.catalogue import IMAGES, LABELLED, Topic
from sf_llava.data.images import EXTENSIONS, ImageSource, LabelledImages
from sf_llava.data.remote import is_remote

if TYPE_CHECKING:
    from sf_llava.data.streaming import ShardStream

MODULES = {
    "folder": "sf_llava.data.folder",
    "parquet": "sf_llava.data.parquet",
    "webdataset": "sf_llava.data.shards",
    "hub": "sf_llava.data.hub",
}
JOIN = " + "
VALID = (
    "folder:PATH, parquet:PATH_OR_GLOB, webdataset:PATTERN, hub:NAME[:SPLIT], {}, "
    "or the path of a folder, a .parquet file or a .tar file"
)


def open_images(name: str) -> ImageSource:
    """Open a data set by name, without labels: they are not read, even where the data set has them.

    Args:
        name: ``folder:PATH``, ``parquet:PATH_OR_GLOB``, ``webdataset:PATTERN``, ``hub:NAME[:SPLIT]``, ``mini``,
            ``mini:diagrams``, ``mini:both``, or an existing path; or several of these with `` + `` between.

    Raises:
        ValueError: an unknown name, or a data set without images.
    """
    if JOIN in name:
        from sf_llava.data.joined import Joined

        return Joined([open_images(part) for part in name.split(JOIN)])
    kind, where = resolve(name)
    if kind in MODULES:
        return importlib.import_module(MODULES[kind]).open_images(where)
    return _registered(IMAGES, kind, name)(where)


def find_stream(name: str) -> "ShardStream | None":
    """Open a data set whose shards lie at an address, which can only be streamed; None for any other."""
    if JOIN in name:
        return None  # parts are opened one by one, and one at an address is refused there
    kind, _, where = name.partition(":")
    if kind == "webdataset" and is_remote(where):
        return importlib.import_module("sf_llava.data.streaming").open_stream(where)
    return None


def open_labelled(name: str) -> LabelledImages:
    """Open a data set by name with its classes, for evaluation. Names and errors as in ``open_images``."""
    kind, where = resolve(name)
    if kind in MODULES:
        return importlib.import_module(MODULES[kind]).open_labelled(where)
    return _registered(LABELLED, kind, name)(where)


def _registered(topic: Topic, kind: str, name: str) -> Callable[[str], Any]:
    if (opener := topic.find(kind)) is None:
        raise ValueError(f"{name} cannot be opened as {topic.what}: expected {VALID.format(topic.usage)}")
    return opener


def resolve(name: str) -> tuple[str, str]:
    """Split a name into its kind and the rest; say what kind of data a bare path holds."""
    kind, colon, where = name.partition(":")
    if kind in MODULES and where:
        return kind, where
    if (IMAGES.find(kind) or LABELLED.find(kind)) and bool(colon) == bool(where):
        return kind, where
    path = os.path.expanduser(name)
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path) and suffix in (".parquet", ".tar"):
        return {".parquet": "parquet", ".tar": "webdataset"}[suffix], name
    if os.path.isdir(path):
        return _kind_of_folder(path), name
    hint = f"; {name} is a file, and only .parquet and .tar files are data sets" if os.path.isfile(path) else ""
    raise ValueError(f"unknown data set {name!r}{hint}: expected {VALID.format(IMAGES.usage)}")


def _kind_of_folder(path: str) -> str:
    endings = {"parquet": (".parquet",), "webdataset": (".tar",), "folder": EXTENSIONS}
    with os.scandir(path) as entries:
        names = [entry.name.lower() for entry in entries if not entry.name.startswith(".")]
    kinds = [kind for kind, ends in endings.items() if any(name.endswith(ends) for name in names)]
    if len(kinds) > 1:
        raise ValueError(f"{path} holds data of several kinds: say which is meant, {' or '.join(kinds)}:{path}")
    return kinds[0] if kinds else "folder"
