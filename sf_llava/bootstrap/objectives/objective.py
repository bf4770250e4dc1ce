"""What an objective is: an object with weights and one call, for a bootstrap or for a loop of one's own.

    student = Seen.by_student(encoder(pixel_values, output_hidden_states=(-2, -1)), layer=-2)
    teacher = Seen(*clip.embeds_and_tokens(pixel_values, -2))
    terms = objective(student, teacher, indices, generator)
    loss = sum(objective.weights[name] * term for name, term in terms.items())

Letters: B pictures, N latents, T tokens beside CLS (a student's N, a teacher's M patches), C 1 where there is a CLS and
0 where there is none, D width, E embedding width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.model import SparseFormerOutput


@dataclass(frozen=True)
class Seen:
    """What the student or the teacher says of B pictures.

    Attributes:
        embeds: (B, E) final embeddings.
        states: (B, C + T, D) hidden state that LLaVA reads, CLS first; None where no objective reads it.
        last_rois: (B, N, 4) the student's last RoIs, corners as image fractions; None where no ``states`` are, and of a
            teacher.
        has_cls: whether ``states`` begin with a CLS.
    """

    embeds: Tensor
    states: Tensor | None = None
    last_rois: Tensor | None = None
    has_cls: bool = True

    @classmethod
    def by_student(cls, output: SparseFormerOutput, layer: int | None = None) -> "Seen":
        """Take what objectives read from an encoder's output, embeddings in float32.

        Args:
            output: of a call with ``output_hidden_states=(layer, -1)`` where a layer is named.
            layer: hidden state that LLaVA reads, counted from the end; None for embeddings alone.

        Raises:
            ValueError: a layer is named, and the output holds no hidden states.
        """
        assert output.image_embeds is not None, "an encoder always gives embeddings"
        embeds = output.image_embeds.float()
        if layer is None:
            return cls(embeds)
        if output.hidden_states is None or output.rois is None:
            raise ValueError(
                f"the output holds no hidden states: call the encoder with output_hidden_states=({layer}, -1)"
            )
        states, rois = output.hidden_states[layer], output.rois[:, -1]
        assert states is not None, "it was asked for"
        return cls(embeds, states, rois, has_cls=states.shape[1] > rois.shape[1])

    @property
    def places(self) -> Tensor:
        """``states`` (B, T, D) without CLS, the latents or patches, for objectives that read them; errors as below."""
        return self.tokens[:, 1:] if self.has_cls else self.tokens

    @property
    def tokens(self) -> Tensor:
        """``states``, for objectives that read them.

        Raises:
            ValueError: there are none.
        """
        if self.states is None:
            raise ValueError("this objective compares hidden states: give `states` beside `embeds`")
        return self.states

    @property
    def rois(self) -> Tensor:
        """``last_rois``, for objectives that read them.

        Raises:
            ValueError: there are none.
        """
        if self.last_rois is None:
            raise ValueError("this objective reads where the student looks: give `last_rois` beside `states`")
        return self.last_rois

    def of(self, pictures: slice) -> "Seen":
        """The same of some of the pictures."""
        states, rois = (None if part is None else part[pictures] for part in (self.states, self.last_rois))
        return Seen(self.embeds[pictures], states, rois, self.has_cls)


class Objective(ABC):
    """One or more losses, each a term with a name and a weight. What most do not need has a default here.

    Attributes:
        weights: of every term, by name, in the order of the log.
        needs_tokens: whether ``Seen.tokens`` are read; without such an objective no hidden state is kept.
        pictures: its own, beside the training images; None where it is about the training images.
    """

    weights: Mapping[str, float]
    needs_tokens: ClassVar[bool] = False
    pictures: BootstrapImages | None = None

    @abstractmethod
    def __call__(self, student: Seen, teacher: Seen, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute every term, unweighted.

        Args:
            student: what the student says of B pictures, with a gradient.
            teacher: what the teacher says of the same.
            indices: (B,) int64 on the CPU, which of ``pictures`` (or of the training images) these are.
            generator: on the CPU, for what is drawn; the same at the same step of a resumed run.

        Returns:
            Scalars by name, float32, one for every weight.
        """

    def digests(self) -> dict[str, str]:
        """Digest what it reads beside teacher and images, by the words for each; a resumed run must find the same."""
        return {}

    def save(self, directory: Path) -> None:  # noqa: B027
        """Write what a resumed run must find again into a checkpoint."""

    def load(self, directory: Path) -> None:  # noqa: B027
        """Take it from a checkpoint."""
