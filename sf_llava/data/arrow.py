"""Pictures in the rows of a ``datasets`` table; ``parquet`` and ``hub`` open their data through this.

The table is memory-mapped: any row is microseconds away, and workers share it.
"""

from typing import TYPE_CHECKING, Any

from PIL import Image

from sf_llava import files
from sf_llava.data.images import CorruptImageError, LabelledImages, decode, number_names
from sf_llava.data.masks import Labels, MaskedImages

if TYPE_CHECKING:
    from datasets import Dataset, Features


class ArrowImages:
    """Pictures of one column: ``{bytes, path}`` or binary. The other columns are dropped, so never read."""

    def __init__(self, dataset: "Dataset", column: str, name: str) -> None:
        import datasets

        dataset = dataset.select_columns([column])
        if isinstance(dataset.features[column], datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))  # we decode: it would turn by EXIF
        if not len(dataset):
            raise ValueError(f"no images in {name}: its column {column!r} has no rows")
        self.dataset = dataset
        self.column = column
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> bytes:
        cell: Any = self.dataset[index][self.column]
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell["bytes"]
            if cell is None and path:  # hub data sets of loose files
                try:
                    return files.read_bytes(path)
                except (OSError, ValueError) as error:  # a path that holds a zero byte is a ValueError
                    reason = getattr(error, "strerror", None) or error
                    raise CorruptImageError(f"{self.describe(index)}: {path!r}: {reason}") from error
        if cell is None:
            raise CorruptImageError(f"{self.describe(index)}: no image in this row")
        return cell

    def load(self, index: int) -> Image.Image:
        return decode(self.read(index), self.describe(index))

    def describe(self, index: int) -> str:
        return f"{self.name} row {index}"


def find_image_column(features: "Features", name: str) -> str:
    """Return the column that holds the pictures: ``image`` if several could."""
    columns = [column for column, feature in features.items() if _holds_images(feature)]
    if len(columns) == 1 or "image" in columns:
        return "image" if "image" in columns else columns[0]
    if columns:
        raise ValueError(f"{name} has several image columns ({', '.join(columns)}): rename the one to use to 'image'")
    raise ValueError(f"no images in {name}: none of its columns ({', '.join(features)}) is {{bytes, path}} or binary")


MASK_COLUMNS = ("mask", "annotation", "segmentation_mask", "label")


def pair_masks(dataset: "Dataset", labels: Labels, name: str) -> MaskedImages:
    """Pair the picture and the mask of every row.

    Raises:
        ValueError: no column of masks.
    """
    return MaskedImages(
        ArrowImages(dataset, find_image_column(dataset.features, name), name),
        ArrowImages(dataset, find_mask_column(dataset.features, name), f"{name} mask,"),
        labels,
    )


def find_mask_column(features: "Features", name: str) -> str:
    """Return the column that holds the masks, encoded pictures of class numbers."""
    columns = [column for column in MASK_COLUMNS if column in features and _holds_images(features[column])]
    if not columns:
        raise ValueError(
            f"no masks in {name}: none of its columns ({', '.join(features)}) is {', '.join(MASK_COLUMNS)} with "
            "encoded pictures"
        )
    return columns[0]


def _holds_images(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        feature = feature.get("bytes")
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def find_label_column(features: "Features", name: str) -> str:
    """Return the column that holds the classes: ``label`` if several could."""
    import datasets

    columns = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if "label" in features:
        return "label"
    if len(columns) != 1:
        raise ValueError(
            f"{name} needs one column of classes, named 'label' or typed ClassLabel; it has {', '.join(features)}"
        )
    return columns[0]


def label_images(dataset: "Dataset", images: ArrowImages, column: str) -> LabelledImages:
    """Attach the classes in ``column``: the schema's names, or the distinct texts, or the numbers as text."""
    import datasets

    values = list(dataset[column])
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel) and None not in values:
        return LabelledImages(images, values, feature.names)
    if all(isinstance(value, int) for value in values):
        return LabelledImages(images, values, number_names(values))
    if all(isinstance(value, str) for value in values):
        class_names = sorted(set(values))
        index_of = {name: index for index, name in enumerate(class_names)}
        return LabelledImages(images, [index_of[value] for value in values], class_names)
    raise ValueError(f"column {column!r} of {images.name} must hold classes, numbers or texts; it is {feature}")
