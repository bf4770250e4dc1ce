"""``hub:NAME[:SPLIT]``: a data set of the Hugging Face hub (or of its cache, or a local data set folder)."""

from typing import TYPE_CHECKING

from sf_llava.data.arrow import ArrowImages, find_image_column, find_label_column, label_images, pair_masks
from sf_llava.data.images import LabelledImages
from sf_llava.data.masks import Labels, MaskedImages
from sf_llava.extras import require

if TYPE_CHECKING:
    from datasets import Dataset


def open_images(where: str) -> ArrowImages:
    """Open the picture column of a hub data set; the split is ``train`` unless named."""
    dataset = _load(where, "train")
    return ArrowImages(dataset, find_image_column(dataset.features, where), where)


def open_labelled(where: str) -> LabelledImages:
    """Open pictures and classes of a hub data set; the split is ``validation`` unless named."""
    dataset = _load(where, "validation")
    images = ArrowImages(dataset, find_image_column(dataset.features, where), where)
    return label_images(dataset, images, find_label_column(dataset.features, where))


def open_masked(where: str, labels: Labels) -> MaskedImages:
    """Open pictures and masks of a hub data set; the split is ``train`` unless named."""
    return pair_masks(_load(where, "train"), labels, where)


def _load(where: str, default_split: str) -> "Dataset":
    require("a data set of the hub", "datasets")
    import datasets

    name, _, split = where.partition(":")
    try:
        return datasets.load_dataset(name, split=split or default_split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"hub:{name} (split {split or default_split}) cannot be opened: {reason[:300]}. Check name, split "
            "(hub:NAME:SPLIT) and connection (offline, only cached data sets open), or give local files: parquet:PATH"
        ) from error
