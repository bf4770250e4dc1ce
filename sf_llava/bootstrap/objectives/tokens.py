"""The objective on the tokens that LLaVA reads, beyond the paper, whose loss supervises the final CLS alone.

    objective = TokenObjective({"set": 0.3, "readout": 1.0}, *measure_tokens(teacher, images, layer=-2))
    student = Seen.by_student(encoder(pixel_values, output_hidden_states=(-2, -1)), layer=-2)
    terms = objective(student, Seen(*teacher.embeds_and_tokens(pixel_values, -2)), indices, generator)

LLaVA's projector reads penultimate latents. These losses compare them with the teacher's penultimate patch tokens of
the same image. Both are standardised per channel first, with the mean and deviation of the teacher's tokens over a
fixed set of training images, so that no channel outweighs the others (a CLIP has a few very large ones).

    set      every latent is near some patch token, every salient patch token is near some latent
    readout  attention over the latents returns what attention over the patch tokens returns

Letters: B images, N latents, M patches, T tokens (CLS first), D width, Q queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from sf_llava.bootstrap.objectives.objective import Objective, Seen
from sf_llava.bootstrap.validation import resize_pixels
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.teachers.base import Teacher

TEMPERATURE = 0.1  # of the soft matches
NUM_QUERIES = 32  # for each image
STATISTICS_IMAGES = 512
IMAGES_AT_ONCE = 64
STATISTICS_FILE = "alignment.safetensors"


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
    saliency = (teacher - teacher.mean(dim=1, keepdim=True)).norm(dim=-1)  # [B, M]
    saliency = saliency / saliency.sum(dim=1, keepdim=True)
    to_student = (saliency * (scores.softmax(dim=1) * distances).sum(dim=1)).sum(dim=1)  # [B]
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


@dataclass
class TokenObjective(Objective):
    """Compares the tokens that LLaVA reads with the teacher's patch tokens, both standardised per channel.

    Attributes:
        weights: of ``set``, ``readout`` or both.
        mean, std: (D,) of the teacher's patch tokens, float32; see :func:`measure_tokens`.
    """

    weights: Mapping[str, float]
    mean: Tensor
    std: Tensor
    needs_tokens: ClassVar[bool] = True

    def __call__(self, student: Seen, teacher: Seen, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute every term, unweighted; see :class:`Objective`. The generator draws the queries of ``readout``."""
        latents, patches = self.standardise(student.tokens[:, 1:]), self.standardise(teacher.tokens[:, 1:])
        terms = {}
        if "set" in self.weights:
            terms["set"] = set_loss(latents, patches)
        if "readout" in self.weights:
            terms["readout"] = readout_loss(latents, patches, draw_queries(patches, generator))
        return terms

    def standardise(self, tokens: Tensor) -> Tensor:
        """Standardise (..., D) tokens per channel, in float32."""
        return (tokens.float() - self.mean) / self.std

    def save(self, directory: Path) -> None:
        """Write the statistics into a checkpoint."""
        save_file({"mean": self.mean.cpu(), "std": self.std.cpu()}, directory / STATISTICS_FILE)

    def load(self, directory: Path) -> None:
        """Take the statistics of a checkpoint."""
        statistics = load_file(directory / STATISTICS_FILE)
        self.mean, self.std = (statistics[name].to(self.mean.device) for name in ("mean", "std"))


@torch.no_grad()
def measure_tokens(teacher: Teacher, images: BootstrapImages, layer: int) -> tuple[Tensor, Tensor]:
    """Measure mean and deviation, (D,) float32, of the teacher's patch tokens over evenly spaced training images."""
    count = min(STATISTICS_IMAGES, len(images))
    total = squares = torch.zeros(teacher.hidden_size, dtype=torch.float64)
    for start in range(0, count, IMAGES_AT_ONCE):
        places = range(start, min(start + IMAGES_AT_ONCE, count))
        pixels = images.pixel_values(place * len(images) // count for place in places)
        tokens = teacher.tokens(resize_pixels(pixels.to(teacher.device), teacher.image_size), layer)
        tokens = tokens[:, 1:].flatten(0, 1).cpu().double()  # [B M, D]
        total, squares = total + tokens.sum(dim=0), squares + tokens.square().sum(dim=0)
    mean = total / (count * teacher.num_patches)
    deviation = (squares / (count * teacher.num_patches) - mean.square()).clamp(min=1e-12).sqrt()
    return mean.float().to(teacher.device), deviation.float().to(teacher.device)
