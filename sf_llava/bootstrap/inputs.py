"""What a run reads, digested: a resumed run that finds something else under the same name would be a mixture of two."""

import hashlib

import numpy as np
from torch import nn

from sf_llava.bootstrap.data import BootstrapData
from sf_llava.data import ImageSource
from sf_llava.data.images import CorruptImageError
from sf_llava.data.streaming import ShardStream
from sf_llava.measure.store import digest_texts, digest_weights
from sf_llava.teachers.base import Teacher

NUM_IMAGES = 16


def digest_inputs(teacher: Teacher, data: BootstrapData) -> dict[str, str]:
    """Digest teacher and images, by the words for each."""
    source = data.images.source
    images = digest_texts(*source.urls) if isinstance(source, ShardStream) else digest_images(source)
    return digest_module("teacher weights", teacher) | {
        "training images": digest_texts(images, str(data.labels)),
        "validation images": digest_texts(digest_images(data.validation.images.source), str(data.validation.labels)),
    }


def digest_images(source: ImageSource) -> str:
    """Digest the number of images and the pixels of some, evenly spaced; where they lie does not count."""
    digest = hashlib.blake2b(f"{len(source)}".encode(), digest_size=20)
    for index in dict.fromkeys(place * len(source) // NUM_IMAGES for place in range(NUM_IMAGES)):
        try:
            pixels = np.asarray(source.load(index))
        except CorruptImageError:
            digest.update(b"unreadable")
            continue
        digest.update(f"{pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def digest_module(what: str, module: nn.Module) -> dict[str, str]:
    """Digest weights, under a name by which only those of one dtype on one kind of device are compared."""
    first = next(module.parameters())
    dtype = str(first.dtype).removeprefix("torch.")
    return {f"{what} ({dtype} on {first.device.type})": digest_weights(module)}
