"""Captions in tables: parquet files and hub data sets with one image a row and one or several captions beside it."""

import re
from typing import TYPE_CHECKING, Any

from sf_llava.data import hub, parquet
from sf_llava.data.arrow import ArrowImages, find_image_column
from sf_llava.data.subset import Subset
from sf_llava.retrieval.pairs import CaptionedImages, gather

if TYPE_CHECKING:
    from datasets import Dataset

CAPTION_COLUMNS = ("captions", "caption", "sentences", "texts", "text", "raw")
NUMBERED = re.compile(r"(caption|sentence|text)_?\d+")
ID_COLUMNS = ("image_id", "img_id", "imgid", "cocoid")
SPLIT = "test"


def open_table(kind: str, where: str) -> CaptionedImages:
    """Open a parquet or hub data set.

    Captions are one column of texts, lists of texts or lists of ``{raw: text}``, or numbered columns (``caption_0``,
    ...). A column ``split`` with several values is reduced to ``test``.
    """
    import numpy as np

    dataset = _load(kind, where)
    name = f"{kind}:{where}"
    image_column = find_image_column(dataset.features, name)
    columns = _caption_columns(dataset.column_names, image_column, name)
    images = ArrowImages(dataset, image_column, name)
    rest = dataset.select_columns([column for column in dataset.column_names if column != image_column])
    notes: list[str] = []
    rows = list(range(len(dataset)))
    has_splits = getattr(rest.features.get("split"), "dtype", None) == "string"
    if has_splits and len(splits := set(split_of := list(rest["split"]))) > 1 and SPLIT in splits:
        rows = [row for row, split in enumerate(split_of) if split == SPLIT]
        notes.append(f"of the splits {', '.join(sorted(map(str, splits)))} in {name}, only {SPLIT} is read")
    id_column = next((column for column in ID_COLUMNS if column in rest.column_names), None)
    ids = list(rest[id_column]) if id_column else range(len(dataset))
    texts = [list(rest[column]) for column in columns]
    left_out: dict[str, list[str]] = {}
    items = [
        (ids[row], images.describe(row), [text for column in texts for text in _texts(column[row])]) for row in rows
    ]
    kept, captions, image_of = gather(name, items, left_out)
    source = Subset(images, np.asarray(rows)[kept])
    return CaptionedImages(name, source, captions, image_of, notes, left_out)


def _load(kind: str, where: str) -> "Dataset":
    if kind == "hub":
        return hub._load(where, SPLIT)
    files, features = parquet._inspect(where)
    return parquet._read(files, list(features), where)


def _caption_columns(columns: list[str], image_column: str, name: str) -> list[str]:
    columns = [column for column in columns if column != image_column]
    for known in CAPTION_COLUMNS:
        if known in columns:
            return [known]
    numbered = [column for column in columns if NUMBERED.fullmatch(column)]
    if not numbered:
        raise ValueError(
            f"no captions in {name}: expected a column {', '.join(CAPTION_COLUMNS)} or caption_0, caption_1, ...; "
            f"it has {', '.join(columns) or 'images only'}"
        )
    return sorted(numbered, key=lambda column: int(re.sub(r"\D", "", column)))


def _texts(value: Any) -> list[Any]:
    """The captions in one cell: a text, a list, Karpathy's ``{raw: ...}``, or a list of those."""
    if isinstance(value, dict):
        value = value.get("raw")
    values = value if isinstance(value, list) else [value]
    return [item.get("raw") if isinstance(item, dict) else item for item in values]
