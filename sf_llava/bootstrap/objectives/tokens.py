"""The objective on the tokens that LLaVA reads, beyond the paper, whose loss supervises the final CLS alone.

    objective = TokenObjective({"set": 0.3, "readout": 1.0}, measure_tokens(teacher, images, layer=-2))
    student = Seen.by_student(encoder(pixel_values, output_hidden_states=(-2, -1)), layer=-2)
    terms = objective(student, Seen(*teacher.embeds_and_tokens(pixel_values, -2)), indices, generator)

LLaVA's projector reads penultimate latents. These losses compare them with the teacher's penultimate patch tokens of
the same image. Both are standardised per channel first (statistics.py), so that no channel outweighs the others (a CLIP
has a few very large ones).

    set       every latent is near some patch token, every salient patch token is near some latent
    readout   attention over the latents returns what attention over the patch tokens returns
    position  what the latents say of a place, as the teacher writes places, is what its patch tokens say of it

Of a teacher that reads a picture in tiles (``TiledTeacher``) and a student that reads the whole of it, each tile is
such an image: those of the latents that start on it are compared with its patch tokens.

Letters: B images, N latents, M patches, T tokens (CLS first), D width, Q queries, R directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.bootstrap.objectives.objective import Objective, Seen
from sf_llava.bootstrap.objectives.statistics import TokenStatistics
from sf_llava.teachers.tiled import by_tile

TEMPERATURE = 0.1  # of the soft matches
NUM_QUERIES = 32  # for each image


def set_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Match two sets of tokens softly in both directions, whatever their sizes and orders.

    With A = student, B = teacher, D_ij = |A_i - B_j|^2 / D and s_j = |B_j - mean_j B| / sum_j |B_j - mean_j B|:

        1/2 [ mean_i sum_j softmax_j(-D_ij / 0.1) D_ij  +  sum_j s_j sum_i softmax_i(-D_ij / 0.1) D_ij ]

    averaged over images. The first term draws every latent to patch tokens near it; the second draws latents to every
    patch token, the more so the more it stands out of its image. No gradient flows through the softmaxes.

    Args:
        student: (B, N, D) standardised, float32.
        teacher: (B, M, D) standardised, float32.

    Returns:
        Scalar, float32.
    """
    products = student @ teacher.transpose(1, 2) / student.shape[-1]
    norms = student.square().mean(dim=-1)[:, :, None] + teacher.square().mean(dim=-1)[:, None, :]
    distances = norms - 2 * products  # [B, N, M]
    scores = -distances.detach() / TEMPERATURE
    to_teacher = (scores.softmax(dim=2) * distances).sum(dim=2).mean(dim=1)  # [B]
    to_student = (saliency(teacher) * (scores.softmax(dim=1) * distances).sum(dim=1)).sum(dim=1)  # [B]
    return (to_teacher + to_student).mean() / 2


def readout_loss(student: Tensor, teacher: Tensor, queries: Tensor) -> Tensor:
    """Compare what attention reads out of two sets of tokens: twice the mean squared difference of

        softmax(q Z^T / (2 sqrt(D))) Z    for Z = student and Z = teacher.

    Args:
        student: (B, N, D) standardised.
        teacher: (B, M, D) standardised.
        queries: (B, Q, D), standardised tokens of other images; see :func:`draw_queries`.

    Returns:
        Scalar, float32.
    """
    return 2 * F.mse_loss(_read_out(queries, student), _read_out(queries, teacher))


def _read_out(queries: Tensor, tokens: Tensor) -> Tensor:
    scale = 0.5 * tokens.shape[-1] ** -0.5
    return (queries @ tokens.transpose(1, 2) * scale).softmax(dim=-1) @ tokens  # [B, Q, D]


def draw_queries(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Draw for every image ``NUM_QUERIES`` tokens of the batch's other images.

    Args:
        tokens: (B, M, D) of the teacher, B at least 2.
        generator: on the CPU; decides which.

    Returns:
        (B, Q, D).
    """
    count, num_tokens = tokens.shape[:2]
    if count < 2:
        raise ValueError("`align` readout takes its queries from other images: raise `micro_batch_size` to 2 or more")
    steps = torch.randint(1, count, (count, NUM_QUERIES), generator=generator)
    images = (torch.arange(count)[:, None] + steps) % count
    places = torch.randint(num_tokens, (count, NUM_QUERIES), generator=generator)
    images, places = (index.to(tokens.device, non_blocking=True) for index in (images, places))
    return tokens[images, places]


def position_loss(student: Tensor, teacher: Tensor, statistics: TokenStatistics) -> Tensor:
    """Compare what two sets of tokens say of every place of the teacher's grid.

    A ViT's tokens tell where they stand. With p_j the teacher's mean token at place j and W its place directions
    (:class:`TokenStatistics`), a set Z says of place j

        r_j(Z) = sum_i softmax_i(-1/2 |W'(z_i - p_j)|^2) z_i

    and the loss is sum_j s_j |r_j(A) - r_j(B)|^2 / D for A = student and B = teacher, averaged over images, with
    s_j = |B_j - mean_j B| / sum_j |B_j - mean_j B|: what stands out of its image counts most. It asks the student to
    write where its content lies in the code that the LLM was trained to read.

    Args:
        student: (B, N, D) standardised.
        teacher: (B, M, D) standardised.
        statistics: of the teacher.

    Returns:
        Scalar, float32.
    """
    read = [statistics.weigh_by_place(tokens) @ tokens for tokens in (student, teacher)]  # [B, M, D]
    difference = read[0] - read[1]
    return (saliency(teacher) * difference.square().mean(dim=-1)).sum(dim=1).mean()


def saliency(tokens: Tensor) -> Tensor:
    """How far tokens (B, M, D) stand out of their image, (B, M): distances from its mean token, summing to one."""
    distances = (tokens - tokens.mean(dim=1, keepdim=True)).norm(dim=-1)
    return distances / distances.sum(dim=1, keepdim=True)


@dataclass
class TokenObjective(Objective):
    """Compares the tokens that LLaVA reads with the teacher's patch tokens, both standardised per channel.

    Attributes:
        weights: of ``set``, ``readout``, ``position``, one or more.
        statistics: of the teacher's patch tokens; see :func:`measure_tokens`.
        tiles: of the teacher, a side.
    """

    weights: Mapping[str, float]
    statistics: TokenStatistics
    tiles: int = 1
    needs_tokens: ClassVar[bool] = True

    def __call__(self, student: Seen, teacher: Seen, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute every term, unweighted; see :class:`Objective`. The generator draws the queries of ``readout``."""
        own = student.places.unflatten(1, (self.tiles**2, -1)).flatten(0, 1)  # [B G^2, N / G^2, D]
        latents, patches = map(self.statistics.standardise, (own, by_tile(teacher.places, self.tiles)))
        terms = {}
        if "set" in self.weights:
            terms["set"] = set_loss(latents, patches)
        if "readout" in self.weights:
            terms["readout"] = readout_loss(latents, patches, draw_queries(patches, generator))
        if "position" in self.weights:
            terms["position"] = position_loss(latents, patches, self.statistics)
        return terms

    def save(self, directory: Path) -> None:
        """Write the statistics into a checkpoint."""
        self.statistics.save(directory)

    def load(self, directory: Path) -> None:
        """Take the statistics of a checkpoint."""
        self.statistics = TokenStatistics.load(directory, self.statistics.mean.device)
