"""What a run reads, digested: a resumed run that finds something else under the same name would be a mixture of two."""

import hashlib

import numpy as np
from torch import nn

from sf_llava.bootstrap.data import BootstrapData
from sf_llava.bootstrap.objectives.llm import LlmObjective
from sf_llava.data import ImageSource
from sf_llava.data.images import CorruptImageError
from sf_llava.measure.store import digest_texts, digest_weights
from sf_llava.teachers.base import Teacher

NUM_IMAGES = 16


def digest_inputs(teacher: Teacher, data: BootstrapData, llm: LlmObjective | None) -> dict[str, str]:
    """Digest teacher, images and, where a LLM is asked, LLaVA and questions; by the words for each."""
    found = {
        _name("teacher weights", teacher): digest_weights(teacher),
        "training images": digest_texts(digest_images(data.images.source), str(data.labels)),
        "validation images": digest_texts(digest_images(data.validation.images.source), str(data.validation.labels)),
    }
    if llm is not None:
        questions = llm.questions.data
        found[_name("weights of the LLaVA", llm.model)] = digest_weights(llm.model)
        found["questions"] = digest_texts(*(f"{problem}" for problem in questions.problems))
    return found


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


def _name(what: str, module: nn.Module) -> str:
    """A name under which only weights of one dtype on one kind of device are compared."""
    first = next(module.parameters())
    return f"{what} ({str(first.dtype).removeprefix('torch.')} on {first.device.type})"
