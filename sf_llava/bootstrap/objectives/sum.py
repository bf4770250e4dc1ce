"""The objectives of one run and their weighted sum."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.bootstrap.batches import Batch
from sf_llava.bootstrap.config import LLM_LOSSES, ObjectiveConfig
from sf_llava.bootstrap.objectives.embedding import EmbeddingObjective
from sf_llava.bootstrap.objectives.llm import LlmObjective, load_llm
from sf_llava.bootstrap.objectives.tokens import TokenObjective, measure_tokens
from sf_llava.bootstrap.validation import Validator
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.sampler import generator_of
from sf_llava.model import SparseFormerModel
from sf_llava.teachers.base import Teacher


class Taught(NamedTuple):
    """What the teacher says of a batch: ``embeds`` (B, E), and the hidden state ``tokens`` (B, 1 + M, D) if needed."""

    embeds: Tensor
    tokens: Tensor | None


class Terms(NamedTuple):
    """``loss`` with a gradient; ``scores`` for the log, detached, as :attr:`ObjectiveSum.names` says."""

    loss: Tensor
    scores: Tensor


@dataclass
class ObjectiveSum:
    """The weighted sum of a run's objectives.

    Attributes:
        embedding: on the final embedding, always there.
        tokens: on the tokens that LLaVA reads, where asked for.
        llm: through a LLaVA, where asked for.
        layer: hidden state of student and teacher that the latter two read, counted from the end.
        labels: (images,) int64 class of every training image, where the embedding's objective needs them.
    """

    embedding: EmbeddingObjective
    tokens: TokenObjective | None
    llm: LlmObjective | None
    layer: int
    labels: Tensor | None = None

    @property
    def needs_tokens(self) -> bool:
        """Whether hidden states are compared, beside embeddings."""
        return self.tokens is not None or self.llm is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores: the loss, the cosine of the embeddings, every term on tokens."""
        parts = (part for part in (self.tokens, self.llm) if part is not None)
        return ("loss", "cosine", *(name for part in parts for name in part.weights))

    def teach(self, teacher: Teacher, pixel_values: Tensor) -> Taught:
        """Ask the teacher what the objectives need of a batch."""
        if not self.needs_tokens:
            return Taught(teacher(pixel_values), None)
        return Taught(*teacher.embeds_and_tokens(pixel_values, self.layer))

    def __call__(
        self, student: torch.nn.Module, pixel_values: Tensor, taught: Taught, batch: Batch, key: tuple[int, ...]
    ) -> Terms:
        """Run the student on a batch and compare it with what the teacher said.

        Args:
            student: in training.
            pixel_values: (B + K, 3, S, S) of the batch, at the student's size.
            taught: of the same pictures.
            batch: which images and questions these are.
            key: of the random numbers.
        """
        count = len(batch.images)  # behind them, the pictures of questions
        wanted = {"output_hidden_states": (self.layer, -1)} if self.needs_tokens else {}
        output = student(pixel_values, **wanted)
        embeds, target = output.image_embeds[:count].float(), taught.embeds[:count].float()
        labels = None if self.labels is None else self.labels[batch.images].to(embeds.device, non_blocking=True)
        terms = self.embedding(embeds, target, labels)
        weights = dict(self.embedding.weights)
        if taught.tokens is not None:
            states, rois = output.hidden_states[self.layer], output.rois[:, -1]
            if self.tokens is not None:
                terms |= self.tokens(states[:count], taught.tokens[:count], generator_of(*key))
                weights |= self.tokens.weights
            if self.llm is not None:
                asked = batch.questions.tolist()
                terms |= self.llm(states[count:], taught.tokens[count:], rois[count:], asked)
                weights |= self.llm.weights
        loss = terms["embedding"]
        for name in [name for name in terms if name != "embedding"]:
            loss = loss + weights[name] * terms[name]
        cosine = F.cosine_similarity(embeds.detach(), target, dim=-1).mean()
        shown = [terms[name].detach() for name in self.names[2:]]
        return Terms(loss, torch.stack([loss.detach(), cosine, *shown]))

    def save(self, directory: Path) -> None:
        """Write what a resumed run must find again into a checkpoint."""
        if self.tokens is not None:
            self.tokens.save(directory)

    def load(self, directory: Path) -> None:
        """Take it from a checkpoint."""
        if self.tokens is not None:
            self.tokens.load(directory)


def make_objective(
    config: ObjectiveConfig,
    teacher: Teacher,
    student: SparseFormerModel,
    images: BootstrapImages,
    validator: Validator,
    labels: list[int] | None,
) -> ObjectiveSum:
    """Set up what ``config`` asks for.

    Raises:
        ValueError: the student has no such layer, or the LLaVA or its questions do not serve.
    """
    layer, depth = config.align_layer, student.config.num_hidden_layers
    if config.align and layer < -depth - 1:
        raise ValueError(f"`align_layer` {layer}: the student's cortex has {depth} blocks, layers {-depth - 1} to -1")
    by_tokens = {name: weight for name, weight in config.align.items() if name not in LLM_LOSSES}
    by_llm = {name: weight for name, weight in config.align.items() if name in LLM_LOSSES}
    llm = None
    if by_llm:
        assert config.llava is not None and config.questions is not None, "the configuration was checked"
        attention, preprocessing = student.config._attn_implementation, images.transform.preprocessing
        llm = load_llm(by_llm, config.llava, config.questions, teacher, layer, attention, preprocessing)
    return ObjectiveSum(
        EmbeddingObjective(config.loss, config.temperature, config.class_loss_weight, validator.class_logits),
        TokenObjective(by_tokens, *measure_tokens(teacher, images, layer)) if by_tokens else None,
        llm,
        layer,
        None if labels is None else torch.tensor(labels),
    )
