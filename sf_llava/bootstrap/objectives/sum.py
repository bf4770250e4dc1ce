"""The objectives of one run and their weighted sum."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.bootstrap.align import LAYER_LOSSES, LLM_LOSSES
from sf_llava.bootstrap.batches import Batch
from sf_llava.bootstrap.config import ObjectiveConfig
from sf_llava.bootstrap.objectives.embedding import EmbeddingObjective
from sf_llava.bootstrap.objectives.layers import load_layers
from sf_llava.bootstrap.objectives.llm import load_llm
from sf_llava.bootstrap.objectives.objective import Objective, Seen
from sf_llava.bootstrap.objectives.statistics import measure_tokens
from sf_llava.bootstrap.objectives.tokens import TokenObjective
from sf_llava.bootstrap.validation import Validator
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.sampler import generator_of
from sf_llava.data.streaming import BootstrapStream
from sf_llava.measure.tuned import Student, TunedTeacher
from sf_llava.teachers.base import Teacher


class HiddenStates(NamedTuple):
    """What the teacher's blocks make of a batch.

    Attributes:
        cls: (B, D), as it leaves the last block.
        tokens: (B, C + M, D), the hidden state that LLaVA reads; None where no objective reads it.
    """

    cls: Tensor
    tokens: Tensor | None


class Taught(NamedTuple):
    """What the teacher says of a batch: ``embeds`` (B, E), and the hidden state ``states`` (B, C + M, D) if needed."""

    embeds: Tensor
    states: Tensor | None


class Terms(NamedTuple):
    """``loss`` with a gradient; ``scores`` for the log, detached, as :attr:`ObjectiveSum.names` says."""

    loss: Tensor
    scores: Tensor


@dataclass(frozen=True)
class ObjectiveSum:
    """The weighted sum of a run's objectives.

    Attributes:
        embedding: on the final embedding, always there.
        others: beside it, in the order of the log; one of them at most brings pictures of its own.
        layer: hidden state of student and teacher that they read, counted from the end.
    """

    embedding: EmbeddingObjective
    others: Sequence[Objective]
    layer: int

    def __post_init__(self) -> None:
        assert sum(objective.pictures is not None for objective in self.others) <= 1, "a batch has room for one"

    @property
    def needs_tokens(self) -> bool:
        """Whether hidden states are compared, beside embeddings."""
        return any(objective.needs_tokens for objective in self.others)

    @property
    def pictures(self) -> BootstrapImages | None:
        """The pictures that an objective brings, beside the training images."""
        return next((objective.pictures for objective in self.others if objective.pictures is not None), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores: the loss, the cosine of the embeddings, every term of the others."""
        return ("loss", "cosine", *(name for objective in self.others for name in objective.weights))

    def look(self, teacher: Teacher, pixel_values: Tensor) -> HiddenStates:
        """Run the teacher's blocks on (B, 3, S, S) pixels, for what the objectives need of a batch."""
        cls, tokens = teacher.cls_and_tokens(pixel_values, self.layer if self.needs_tokens else -1)
        return HiddenStates(cls, tokens if self.needs_tokens else None)

    def teach(self, teacher: Teacher, seen: HiddenStates) -> Taught:
        """Let the teacher say what the objectives need, of what its blocks made of a batch."""
        return Taught(teacher.embed_cls(seen.cls), seen.tokens)

    def __call__(
        self,
        student: torch.nn.Module,
        pixel_values: Tensor,
        taught: Taught,
        batch: Batch,
        key: tuple[int, ...],
        num_latents: int | None = None,
    ) -> Terms:
        """Run the student on a batch and compare it with what the teacher said.

        Args:
            student: in training.
            pixel_values: (B + K, 3, S, S) of the batch, at the student's size.
            taught: of the same pictures.
            batch: which images and questions these are.
            key: of the random numbers.
            num_latents: of this step, for an elastic student.
        """
        wanted: dict[str, Any] = {"output_hidden_states": (self.layer, -1)} if self.needs_tokens else {}
        if num_latents is not None:
            wanted["num_latents"] = num_latents
        said = Seen.by_student(student(pixel_values, **wanted), self.layer if self.needs_tokens else None)
        asked = Seen(taught.embeds.float(), taught.states, has_cls=said.has_cls)
        images, questions = slice(None, len(batch.images)), slice(len(batch.images), None)
        loss: Tensor | float = 0.0
        scores: list[Tensor] = []
        for objective in (self.embedding, *self.others):
            part, indices = (images, batch.images) if objective.pictures is None else (questions, batch.questions)
            terms = objective(said.of(part), asked.of(part), indices, generator_of(*key))
            for name, weight in objective.weights.items():
                loss = loss + weight * terms[name]
            if objective is not self.embedding:
                scores += [terms[name].detach() for name in objective.weights]
        assert isinstance(loss, Tensor)
        cosine = F.cosine_similarity(said.embeds[images].detach(), asked.embeds[images], dim=-1).mean()
        return Terms(loss, torch.stack([loss.detach(), cosine, *scores]))

    def digests(self) -> dict[str, str]:
        """Digest what the objectives read beside teacher and images, by the words for each."""
        return {what: digest for objective in self.others for what, digest in objective.digests().items()}

    def save(self, directory: Path) -> None:
        """Write what a resumed run must find again into a checkpoint."""
        for objective in self.others:
            objective.save(directory)

    def load(self, directory: Path) -> None:
        """Take it from a checkpoint."""
        for objective in self.others:
            objective.load(directory)


def make_objective(
    config: ObjectiveConfig,
    teacher: Teacher,
    student: Student,
    images: BootstrapImages | BootstrapStream,
    validator: Validator,
    labels: list[int] | None,
) -> ObjectiveSum:
    """Set up what ``config`` asks for.

    Raises:
        ValueError: the student has no such layer, or the LLaVA or its questions do not serve.
    """
    known = None if labels is None else torch.tensor(labels)
    embedding = EmbeddingObjective(
        config.loss, config.temperature, config.class_loss_weight, validator.class_logits, known
    )
    layer, depth = config.align_layer, student.config.num_hidden_layers
    if isinstance(student, TunedTeacher):
        assert not config.align, "the configuration was checked"
        return ObjectiveSum(embedding, (), layer)
    if config.align and layer < -depth - 1:
        raise ValueError(f"`align_layer` {layer}: the student's cortex has {depth} blocks, layers {-depth - 1} to -1")
    by_llm, by_layers = _only(config.align, LLM_LOSSES), _only(config.align, LAYER_LOSSES)
    by_tokens = _only(config.align, config.align.keys() - by_llm.keys() - by_layers.keys())
    if teacher.tiles > 1 and (by_llm or by_layers):
        raise ValueError(
            f"`align` {' and '.join((by_llm | by_layers).keys())} with `tiles` {teacher.tiles}: a LLaVA reads tiles in "
            "a layout of its own; align such a student by set, readout and position"
        )
    others: list[Objective] = []
    if by_tokens:
        # A stream cannot be asked for evenly spaced images: those held out for validation stand for it.
        measured = validator.images.images if isinstance(images, BootstrapStream) else images
        statistics = measure_tokens(teacher, measured, layer)
        if "position" in by_tokens:
            statistics.require_places()
        others.append(TokenObjective(by_tokens, statistics, teacher.tiles))
    attention = student.config._attn_implementation
    if by_layers:
        assert config.llava is not None, "the configuration was checked"
        others.append(load_layers(by_layers, config.llava, teacher, layer, attention))
    if by_llm:
        assert config.llava is not None and config.questions is not None, "the configuration was checked"
        preprocessing = images.transform.preprocessing
        others.append(load_llm(by_llm, config.llava, config.questions, teacher, layer, attention, preprocessing))
    return ObjectiveSum(embedding, others, layer)


def _only(weights: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    return {name: weight for name, weight in weights.items() if name in names}
