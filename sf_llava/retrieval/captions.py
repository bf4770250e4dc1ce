"""Images with captions by name: Karpathy's and COCO's JSON, parquet, hub, and what is registered (the drawn world)."""

from collections.abc import Sequence
from pathlib import Path

from sf_llava.catalogue import CAPTIONS
from sf_llava.retrieval.pairs import CaptionedImages

__all__ = ["CaptionedImages", "open_captions"]

VALID = (
    "captions:FILE.json (Karpathy's dataset_coco.json or dataset_flickr30k.json, COCO's captions_val2014.json), "
    "parquet:PATH_OR_GLOB, hub:NAME[:SPLIT], the path of a .json or .parquet file"
)


def open_captions(name: str, folders: Sequence[str] = ()) -> CaptionedImages:
    """Open a data set of images with captions.

    Args:
        name: ``captions:FILE.json``, ``parquet:PATH_OR_GLOB``, ``hub:NAME[:SPLIT]`` (split ``test`` unless named),
            a registered name (``mini``), or the path of a .json or .parquet file.
        folders: where the images of a JSON file are; next to it if empty.

    Raises:
        ValueError: an unknown name, a file of another kind, missing images, ids that occur twice, no captions.
    """
    kind, _, where = name.partition(":")
    registered = CAPTIONS.find(kind)
    if kind not in ("captions", "parquet", "hub") and registered is None:
        kind, where = {".json": "captions", ".parquet": "parquet"}.get(Path(name).suffix.lower(), ""), name
    if folders and kind != "captions":
        raise ValueError(f"folders of images belong to a JSON file of captions, but {name!r} brings its own images")
    if kind == "captions" and where:
        from sf_llava.retrieval.caption_files import open_json

        return open_json(where, folders)
    if kind in ("parquet", "hub") and where:
        from sf_llava.retrieval.caption_tables import open_table

        return open_table(kind, where)
    if registered is not None:
        return registered(where)
    raise ValueError(f"unknown data set {name!r}: expected {VALID}, {CAPTIONS.usage}")
