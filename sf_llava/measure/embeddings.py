"""Embeddings of many images and texts: spread over processes, kept on disk by content.

Batches are composed alike whatever the number of processes, so embeddings are equal.
Letters: M images, N texts, E embedding width.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from sf_llava.data import CorruptImageError, ImageSource
from sf_llava.data.encoded import read_encoded
from sf_llava.measure.encoders import Advance, Candidate, EncodingPass, ignore, share
from sf_llava.measure.store import EmbeddingStore, digest_texts, fingerprint
from sf_llava.teachers.base import Teacher

TEXTS_AT_ONCE = 256


@dataclass
class ImageEmbeddings:
    """What encoders made of the readable images.

    Attributes:
        embeds: (M, E) float32 for each encoder.
        places: the index of each of the M images in the source.
        corrupt: one sentence for every unreadable image.
        images_per_second: of each encoder's forward pass, None where the embeddings were on disk.
    """

    embeds: list[Tensor]
    places: list[int]
    corrupt: list[str]
    images_per_second: list[float | None]


def embed_images(
    encoders: Sequence[Candidate],
    source: ImageSource,
    store: EmbeddingStore,
    *,
    batch_size: int = 64,
    workers: int = 0,
    advance: Advance = ignore,
) -> ImageEmbeddings:
    """Embed all images of a source with all encoders; what is in ``store`` is not computed again.

    Args:
        encoders: on one device (of this process).
        source: the images; unreadable ones are left out and told.
        store: where embeddings are kept.
        batch_size: images a forward pass.
        workers: decoding processes besides this one.
        advance: called with the number of images done.

    Raises:
        ValueError: no image can be read, or a batch size below 1.
        RuntimeError: images changed meanwhile.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    if not len(source):
        raise ValueError("there are no images to embed")
    state = PartialState()
    keys: list[str] = []
    kept: list[tuple[Tensor, dict] | None] = []
    if state.is_main_process:
        pixels = _digest_images(source)
        keys = [digest_texts(fingerprint(encoder.module), repr(encoder.preprocessing), pixels) for encoder in encoders]
        kept = [store.read(key) for key in keys]
    keys, kept = broadcast_object_list([keys, kept])
    to_do = [encoder for encoder, entry in zip(encoders, kept, strict=True) if entry is None]
    fresh: list[tuple[Tensor, dict]] = []
    speeds: list[float] = []
    if to_do:
        mine = share(range(len(source)), batch_size, state)
        encoding = EncodingPass(to_do, source, mine, batch_size, workers, advance)
        batches = [
            ([mine[place] for place in places], [embeds.float().cpu() for embeds, _ in outputs])
            for places, outputs in encoding
        ]
        batches = sorted(gather_object(batches), key=lambda batch: batch[0])
        note = {"places": [i for places, _ in batches for i in places], "corrupt": gather_object(encoding.corrupt)}
        if not batches:
            raise ValueError(f"none of the {len(source)} images can be read; the first: {note['corrupt'][0]}")
        fresh = [(torch.cat([embeds[number] for _, embeds in batches]), note) for number in range(len(to_do))]
        speeds = encoding.images_per_second
    entries, images_per_second = [], []
    for key, entry in zip(keys, kept, strict=True):
        images_per_second.append(None if entry else speeds.pop(0))
        if entry is None:
            entry = fresh.pop(0)
            if state.is_main_process:
                store.write(key, *entry)
        entries.append(entry)
    note = entries[0][1]
    if any(other["places"] != note["places"] for _, other in entries):
        raise RuntimeError("images that could be read before could not now, or the other way round: run it again")
    return ImageEmbeddings([embeds for embeds, _ in entries], note["places"], note["corrupt"], images_per_second)


@torch.no_grad()
def embed_texts(teacher: Teacher, texts: Sequence[str], store: EmbeddingStore, advance: Advance = ignore) -> Tensor:
    """Embed texts with the teacher's text tower: (N, E) float32; kept in ``store`` like images."""
    state = PartialState()
    key, kept = "", None
    if state.is_main_process:
        key = digest_texts(fingerprint(teacher), *texts)
        kept = store.read(key)
    key, kept = broadcast_object_list([key, kept])
    if kept is not None:
        return kept[0]
    mine = share(range(len(texts)), TEXTS_AT_ONCE, state)
    batches: list[tuple[int, Tensor]] = []
    for start in range(0, len(mine), TEXTS_AT_ONCE):
        places = mine[start : start + TEXTS_AT_ONCE]
        batches.append((places[0], teacher.encode_text([texts[place] for place in places]).float().cpu()))
        advance(len(places))
    embeds = torch.cat([embeds for _, embeds in sorted(gather_object(batches), key=lambda batch: batch[0])])
    if state.is_main_process:
        store.write(key, embeds, {})
    return embeds


def _digest_images(source: ImageSource) -> str:
    digest = hashlib.blake2b()
    for data in _contents(source, range(len(source))):
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def _contents(source: ImageSource, indices: Iterable[int]) -> Iterable[bytes]:
    """The encoded pictures where there are any, else their pixels (the drawn world's); errors for unreadable ones."""
    for index in indices:
        try:
            if (data := read_encoded(source, index)) is not None:
                yield data
            else:
                image = source.load(index)
                yield f"{image.size}".encode() + image.tobytes()
        except CorruptImageError as error:
            yield str(error).encode()
