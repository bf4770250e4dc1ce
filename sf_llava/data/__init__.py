"""Images by name: folders, parquet, webdataset shards, hub data sets, the drawn world.

``open_images`` gives pictures without labels (bootstrapping), ``open_labelled`` pictures with classes (evaluation);
``transforms`` turns them into tensors, ``bootstrap_images`` and ``sampler`` into exactly resumable batches.
"""

from sf_llava.data.images import CorruptImageError, ImageSource, LabelledImages
from sf_llava.data.names import open_images, open_labelled

__all__ = ["CorruptImageError", "ImageSource", "LabelledImages", "open_images", "open_labelled"]
