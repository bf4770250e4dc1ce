"""``parquet:PATH_OR_GLOB``: pictures embedded in parquet files, as hubs publish them.

Parquet cannot be read row by row, so ``datasets`` copies the picture column once into its cache (``HF_HOME``, as large
as the pictures themselves) and memory-maps it. For bootstrapping no other column is read from the files.
"""

import glob
from typing import TYPE_CHECKING

from sf_llava.data.arrow import (
    ArrowImages,
    find_image_column,
    find_label_column,
    find_mask_column,
    label_images,
    pair_masks,
)
from sf_llava.data.images import LabelledImages
from sf_llava.data.masks import Labels, MaskedImages
from sf_llava.data.paths import find_files
from sf_llava.extras import require

if TYPE_CHECKING:
    from datasets import Dataset, Features


def open_images(where: str) -> ArrowImages:
    """Open the picture column of the parquet files at ``where`` (a file, a folder or a glob)."""
    files, features = _inspect(where)
    column = find_image_column(features, where)
    return ArrowImages(_read(files, [column], where), column, where)


def open_labelled(where: str) -> LabelledImages:
    """Open the picture and the class column of the parquet files at ``where``."""
    files, features = _inspect(where)
    image_column, label_column = find_image_column(features, where), find_label_column(features, where)
    dataset = _read(files, [image_column, label_column], where)
    return label_images(dataset, ArrowImages(dataset, image_column, where), label_column)


def open_masked(where: str, labels: Labels) -> MaskedImages:
    """Open the picture and the mask column of the parquet files at ``where``."""
    files, features = _inspect(where)
    columns = [find_image_column(features, where), find_mask_column(features, where)]
    return pair_masks(_read(files, columns, where), labels, where)


def _inspect(where: str) -> tuple[list[str], "Features"]:
    """Find the files that hold rows, reading every footer; the first one's schema describes all."""
    require("reading parquet", "datasets", "pyarrow")
    import datasets
    import pyarrow.parquet

    schemas = {}
    for file in find_files(where, ".parquet"):
        try:
            metadata = pyarrow.parquet.read_metadata(file)
            if metadata.num_rows:
                schemas[file] = datasets.Features.from_arrow_schema(metadata.schema.to_arrow_schema())
        except Exception as error:  # a damaged footer raises ArrowInvalid, OSError, KeyError and more
            raise ValueError(f"{file} is not a complete parquet file ({error}); fetch it again") from error
    if not schemas:
        raise ValueError(f"no images in {where}: its parquet files have no rows")
    return list(schemas), next(iter(schemas.values()))


def _read(files: list[str], columns: list[str], where: str) -> "Dataset":
    import datasets

    patterns = [glob.escape(file) for file in files]
    try:
        return datasets.load_dataset("parquet", data_files=patterns, columns=columns, split="train")
    except Exception as error:  # DatasetsError about most damage, pyarrow's and Python's own about the rest
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"parquet:{where} cannot be read: {reason}; if a file is damaged, fetch it again") from error
