"""Which column of a table of questions holds the pictures, which rows have one, and how a cell becomes a picture.

A cell is ``{bytes, path}``, bytes, a path, base64 text, or a list of such.
"""

import base64
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sf_llava.data.images import EXTENSIONS, CorruptImageError, decode
from sf_llava.files import read_bytes

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

NAMES = (
    *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "figure", "bytes"),
    *("image_path", "img_path", "image_file", "image_bytes", "image_base64", "decoded_image"),
)
"""Names that promise pictures, whatever the column holds."""
_BASE64 = ("data:image/", "/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")  # JPEG, PNG, GIF, WebP


def find_pictures(rows: "Dataset", others: set[str], name: str) -> tuple[str | None, list[int]]:
    """Find the column of the pictures by what it holds, then by its name; ``image`` if several do.

    Warns where a column of pictures is not used.

    Args:
        rows: the table.
        others: columns that hold something else.
        name: of the table, for messages.

    Returns:
        The column (None where no column holds or promises a picture), and how many pictures every row has there.

    Raises:
        ValueError: several columns hold pictures and none is called ``image``, or one that promises pictures holds
            something else; the message lists the columns.
    """
    arrays = {column: rows.data.column(column) for column in rows.column_names if column not in others}
    readable = [column for column, array in arrays.items() if _holds(column, array)]
    counts = {column: [n for chunk in arrays[column].chunks for n in _count(chunk).tolist()] for column in readable}
    found = [column for column in readable if any(counts[column])]
    has = f"{name} has the columns {', '.join(rows.column_names)}"
    if not found:
        odd = [column for column, array in arrays.items() if column not in readable and _promises(column, array)]
        if odd:
            raise ValueError(
                f"{has}; {odd[0]!r} holds {arrays[odd[0]].type}, which is no picture: expected {{bytes, path}}, bytes, "
                "a path or base64"
            )
        return None, [0] * len(rows)
    if len(found) > 1 and "image" not in found:
        raise ValueError(
            f"{has}, and several hold pictures ({', '.join(found)}): a question is asked with one; rename it 'image'"
        )
    chosen = "image" if "image" in found else found[0]
    if unused := [column for column in found if column != chosen]:
        warnings.warn(f"{name}: pictures are read from {chosen!r}, not from {', '.join(unused)}", stacklevel=2)
    return chosen, counts[chosen]


def _promises(column: str, array: "pyarrow.ChunkedArray") -> bool:
    """Whether a column is called as pictures are, and holds anything."""
    import pyarrow.types as types

    return column.lower() in NAMES and array.null_count < len(array) and not types.is_null(_cell_type(array.type))


def _holds(column: str, array: "pyarrow.ChunkedArray") -> bool:
    """Whether cells of this type can be pictures; of texts, whether the name promises it or they are paths of such."""
    import pyarrow.types as types

    kind = _cell_type(array.type)
    if types.is_struct(kind):
        parts = {name: kind.field(name).type for name in ("bytes", "path") if name in kind.names}
        return _is_binary(parts.get("bytes")) or (column.lower() in NAMES and _is_text(parts.get("path")))
    return _is_binary(kind) or (_is_text(kind) and (column.lower() in NAMES or _look_like_pictures(array)))


def _cell_type(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """The type of a cell, or of what a list in it holds."""
    return kind.value_type if _is_list(kind) else kind


def _is_list(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_binary(kind: "pyarrow.DataType | None") -> bool:
    import pyarrow.types as types

    return kind is not None and (types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: "pyarrow.DataType | None") -> bool:
    import pyarrow.types as types

    return kind is not None and (types.is_string(kind) or types.is_large_string(kind))


def _look_like_pictures(array: "pyarrow.ChunkedArray") -> bool:
    """Whether the first texts of a column all end as the names of pictures do, or begin as pictures in base64 do."""
    cells = array.drop_null()[:100].to_pylist()
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell]) if text]
    return bool(texts) and all(text.lower().endswith(EXTENSIONS) or text.startswith(_BASE64) for text in texts)


def _count(array: "pyarrow.Array") -> np.ndarray:
    """Count the pictures of every row, without reading one: (rows,) int64."""
    import pyarrow.compute as compute
    import pyarrow.types as types

    kind = array.type
    if _is_list(kind):
        counts = np.zeros(len(array), dtype=np.int64)
        np.add.at(counts, compute.list_parent_indices(array).to_numpy(), _count(compute.list_flatten(array)))
        return counts
    if types.is_struct(kind):
        parts = [compute.struct_field(array, name) for name in ("bytes", "path") if name in kind.names]
        return np.maximum.reduce([_count(part) for part in parts])
    present = array.is_valid()
    if _is_text(kind):
        present = compute.fill_null(compute.greater(compute.utf8_length(array), 0), False)
    return present.to_numpy(zero_copy_only=False).astype(np.int64)


def read_picture(cell: Any, folder: Path | None, name: str) -> Image.Image:
    """Decode the picture in a cell.

    Raises:
        CorruptImageError: it cannot be read; the message names it and says why.
    """
    if isinstance(cell, list):
        cell = next(part for part in cell if part)  # the only one
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell["path"]
    if isinstance(cell, str):
        cell = _read_text(cell, folder, name)
    return decode(cell, name)


def _read_text(text: str, folder: Path | None, name: str) -> bytes:
    """Read what a text stands for: a file, found from the table's own folder first, or base64."""
    if len(text) < 4096 and "\0" not in text:
        for path in ([folder / text] if folder else []) + [Path(text)]:
            try:
                return read_bytes(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CorruptImageError(f"{name}: {path}: {error.strerror}") from error
    try:
        if len(text) < 100:
            raise ValueError("too short for a picture")
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except ValueError as error:
        raise CorruptImageError(f"{name}: no file {text[:200]!r}, and it is not base64 either") from error
