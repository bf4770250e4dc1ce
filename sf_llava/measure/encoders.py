"""Image encoders side by side: one pass over the images, every image decoded once, every encoder timed alone.

Letters: B images a batch, C classes, E embedding width, S image size.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sf_llava.data import CorruptImageError, ImageSource
from sf_llava.data.loading import processes_of, watch
from sf_llava.data.transforms import Preprocessing
from sf_llava.model import SparseFormerModel
from sf_llava.model.v1 import SparseFormerV1Model
from sf_llava.teachers.base import Teacher

Outputs = list[tuple[Tensor, Tensor | None]]
Advance = Callable[[int], None]


def ignore(count: int) -> None:
    """Advance no progress bar."""


@dataclass(frozen=True)
class Candidate:
    """One of the image encoders that are compared: a teacher, a student, a teacher with fewer tokens.

    Attributes:
        name: for the table.
        module: maps ``pixel_values`` to what ``read`` understands.
        read: takes (image_embeds (B, E), logits (B, C) or None) out of the module's output.
        preprocessing: from picture to ``pixel_values``.
        num_tokens: visual tokens an LLM would receive (CLS not counted).
        num_parameters: of the image tower with its head.
        use_cls: whether it has CLS beside these tokens.
        kind: those of one kind are a line of a plot.
    """

    name: str
    module: nn.Module
    read: Callable[[Any], tuple[Tensor, Tensor | None]]
    preprocessing: Preprocessing
    num_tokens: int
    num_parameters: int
    use_cls: bool = True
    kind: str = "teacher"

    @property
    def tokens(self) -> str:
        """``num_tokens`` for a table, with CLS where there is one."""
        return f"{self.num_tokens}{' + CLS' * self.use_cls}"

    def __call__(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.read(self.module(pixel_values))


def teacher_candidate(teacher: Teacher) -> Candidate:
    """Compare a teacher."""

    def read(embeds: Tensor) -> tuple[Tensor, Tensor | None]:
        return embeds, teacher.classify(embeds) if teacher.num_classes else None

    counts = teacher.num_patches, teacher.num_parameters()
    return Candidate("teacher", teacher, read, teacher.preprocessing, *counts, teacher.use_cls)


def student_candidate(student: SparseFormerModel, teacher: Teacher, name: str = "student") -> Candidate:
    """Compare a ``SparseFormerModel`` with the teacher it was bootstrapped from.

    Raises:
        ValueError: its embeddings are not of the teacher's kind.
    """
    config = student.config
    size, classes = config.projection_dim or config.hidden_size, config.num_classes
    if (size, classes) != (teacher.embed_dim, teacher.num_classes):
        raise ValueError(
            f"the student embeds into {size} numbers with {classes} classes, {teacher.name} into {teacher.embed_dim} "
            f"with {teacher.num_classes}: it was bootstrapped from another teacher"
        )
    preprocessing = replace(
        teacher.preprocessing, image_size=config.image_size, mean=config.image_mean, std=config.image_std
    )
    num_parameters = sum(parameter.numel() for parameter in student.parameters())
    about = config.num_latents, num_parameters, config.use_cls, "SparseFormer"
    return Candidate(name, student, lambda out: (out.image_embeds, out.logits), preprocessing, *about)


def v1_candidate(model: SparseFormerV1Model) -> Candidate:
    """Measure a SparseFormer v1 by its own classifier.

    Raises:
        ValueError: it reads clips.
    """
    config = model.config
    if config.is_video:
        raise ValueError("a SparseFormer of clips cannot be measured on pictures: convert its v1 file without clips")
    preprocessing = Preprocessing(
        config.image_size,
        config.image_mean,
        config.image_std,
        config.interpolation,
        config.crop_fraction,
        config.resize_mode,
    )
    name, num_parameters = "SparseFormer v1", sum(parameter.numel() for parameter in model.parameters())
    about = config.num_latents, num_parameters, False, name
    return Candidate(name, model, lambda out: (out.image_embeds, out.logits), preprocessing, *about)


class _Views(Dataset):
    """The images of a task, each as (S, S, 3) uint8 for every preprocessing, or as the sentence that says why not."""

    def __init__(self, images: ImageSource, indices: list[int], preprocessings: Sequence[Preprocessing]) -> None:
        self.images, self.indices, self.preprocessings = images, indices, preprocessings

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[int, list[Tensor]] | str:
        try:
            image = self.images.load(self.indices[place])
        except CorruptImageError as error:
            return str(error)
        return place, [preprocessing.pixels(image) for preprocessing in self.preprocessings]


def _collate(items: list[tuple[int, list[Tensor]] | str]) -> tuple[list[int], list[Tensor], list[str]]:
    """Stack the readable ones: their places, one (B, S, S, 3) batch a preprocessing, and what was unreadable."""
    corrupt = [item for item in items if isinstance(item, str)]
    readable = [item for item in items if not isinstance(item, str)]
    batches = [torch.stack(views) for views in zip(*(views for _, views in readable), strict=True)]
    return [place for place, _ in readable], batches, corrupt


class EncodingPass:
    """Runs encoders over images, batch by batch; iterate over it once.

    Args:
        encoders: all on one device.
        images, indices: which images.
        batch_size: B.
        workers: processes that decode; 0 decodes in this one.
        advance: called with the number of images done after each batch.

    Raises:
        ValueError: a batch of less than one image, or less than no workers.

    Attributes:
        corrupt: one sentence for every unreadable image met so far.
        images_per_second: speed of each encoder's forward pass so far (transfer and decoding not counted, nor the
            first batch where there are more).
    """

    def __init__(
        self,
        encoders: Sequence[Candidate],
        images: ImageSource,
        indices: list[int],
        batch_size: int,
        workers: int = 0,
        advance: Advance = ignore,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ValueError(f"expected batches of at least 1 image and 0 or more workers: {batch_size}, {workers}")
        self.encoders = encoders
        self.preprocessings = list(dict.fromkeys(encoder.preprocessing for encoder in encoders))
        self.device = next(encoders[0].module.parameters()).device
        views = _Views(images, indices, self.preprocessings)
        on_gpu = self.device.type == "cuda"
        self.loader = DataLoader(
            views,
            batch_size,
            collate_fn=_collate,
            pin_memory=on_gpu,
            **processes_of(workers),
        )
        self.advance = advance
        self.corrupt: list[str] = []
        self.seconds: list[list[tuple[int, float]]] = [[] for _ in encoders]

    @torch.inference_mode()
    def __iter__(self) -> Iterator[tuple[list[int], Outputs]]:
        """Yield places in ``indices`` and each encoder's (image_embeds (B, E), logits (B, C) or None)."""
        for places, batches, corrupt in watch(self.loader):
            self.corrupt += corrupt
            if places:
                batches = [
                    preprocessing.normalise_pixels(batch.to(self.device, non_blocking=True))
                    for preprocessing, batch in zip(self.preprocessings, batches, strict=True)
                ]
                yield places, [self._timed(number, batches) for number in range(len(self.encoders))]
            self.advance(len(places) + len(corrupt))

    @property
    def images_per_second(self) -> list[float]:
        speeds = []
        for measured in self.seconds:
            measured = measured[1:] or measured
            total = sum(seconds for _, seconds in measured)
            speeds.append(sum(count for count, _ in measured) / total if total else 0.0)
        return speeds

    def _timed(self, number: int, batches: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        encoder = self.encoders[number]
        pixel_values = batches[self.preprocessings.index(encoder.preprocessing)]
        self._finish()
        started = time.perf_counter()
        output = encoder(pixel_values)
        self._finish()
        self.seconds[number].append((len(pixel_values), time.perf_counter() - started))
        return output

    def _finish(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def share(places: range, batch_size: int, state: PartialState) -> list[int]:
    """This process's batches, in turn with the others'; only the last batch of all may be short."""
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    starts = range(state.process_index * batch_size, len(places), state.num_processes * batch_size)
    return [place for start in starts for place in places[start : start + batch_size]]
