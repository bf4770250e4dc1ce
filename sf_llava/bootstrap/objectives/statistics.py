"""What the losses on tokens must know of a teacher: statistics of its patch tokens over a fixed set of images.

Letters: B images, M patches, T tokens of either side, D width, R directions.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.transforms import resize_pixels
from sf_llava.teachers.base import Teacher
from sf_llava.teachers.tiled import by_tile

IMAGES = 512
IMAGES_AT_ONCE = 64
FILE = "alignment.safetensors"
MAX_DIRECTIONS = 24
RIDGE = 0.02  # added to a covariance of standardised tokens, so that it can be inverted
SMALLEST_LIFT = 3.0  # over chance, of places told by their tokens


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of a teacher's patch tokens, float32.

    Attributes:
        mean, std: (D,) of all tokens, by which they are standardised per channel.
        places: (M, D) mean standardised token of every place.
        directions: (D, R) those in which places differ most, where a step of one is the deviation of the tokens of one
            place: with C the covariance of tokens around the mean of their place (plus 0.02 I), the leading 24
            eigenvectors of the places' covariance after whitening by C^(-1/2), times C^(-1/2).
        told: share of tokens (of the first 64 images) for which the nearest of ``places`` along ``directions`` is their
            own, a scalar.
    """

    mean: Tensor
    std: Tensor
    places: Tensor
    directions: Tensor
    told: Tensor

    def standardise(self, tokens: Tensor) -> Tensor:
        """Standardise (..., D) tokens per channel, in float32."""
        return (tokens.float() - self.mean) / self.std

    def weigh_by_place(self, tokens: Tensor) -> Tensor:
        """Give the weights (B, M, T) with which standardised tokens (B, T, D) are read at each place.

        They are softmax_i(-1/2 |W'(z_i - p_j)|^2) over tokens z_i, with p_j of ``places`` and W the ``directions``.
        """
        directions, places = self.directions.to(tokens.dtype), self.places.to(tokens.dtype)
        codes, wanted = tokens @ directions, places @ directions  # [B, T, R], [M, R]
        # The square of the place's own code is the same for all tokens, and leaves the softmax as it is.
        scores = wanted @ codes.transpose(1, 2) - codes.square().sum(dim=-1)[:, None, :] / 2
        return scores.softmax(dim=-1)

    def require_places(self) -> None:
        """Refuse a teacher whose tokens do not tell where they stand.

        Raises:
            ValueError: places are told hardly better than by chance.
        """
        count = len(self.places)
        if self.told.item() * count < SMALLEST_LIFT:
            raise ValueError(
                f"`align` position reads the place of a token out of it, and this teacher's tell {self.told:.1%} "
                f"of their {count} places (by chance {1 / count:.1%}): align with set and readout alone"
            )

    def save(self, directory: Path) -> None:
        """Write them into a checkpoint."""
        save_file({name: value.cpu().contiguous() for name, value in asdict(self).items()}, directory / FILE)

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> "TokenStatistics":
        """Read those of a checkpoint."""
        return cls(**{name: value.to(device) for name, value in load_file(directory / FILE).items()})


@torch.no_grad()
def measure_tokens(teacher: Teacher, images: BootstrapImages, layer: int) -> TokenStatistics:
    """Measure a teacher's patch tokens, the hidden state ``layer``, over evenly spaced training images.

    Of a teacher that reads them in tiles every tile counts as an image.
    """
    count, width, num_tiles = min(IMAGES, len(images)), teacher.hidden_size, teacher.tiles**2
    num_patches = teacher.num_patches // num_tiles
    sums = torch.zeros(num_patches, width, dtype=torch.float64)
    products = torch.zeros(width, width, dtype=torch.float64)
    sample = torch.empty(0)
    for start in range(0, count, IMAGES_AT_ONCE):
        chosen = range(start, min(start + IMAGES_AT_ONCE, count))
        pixels = images.pixel_values(place * len(images) // count for place in chosen)
        tokens = teacher.tokens(resize_pixels(pixels.to(teacher.device), teacher.image_size), layer)
        tokens = by_tile(tokens[:, int(teacher.use_cls) :], teacher.tiles).cpu().double()  # [B, M, D]
        sample = sample if start else tokens
        sums += tokens.sum(dim=0)
        flat = tokens.flatten(0, 1)
        products += flat.T @ flat
    count *= num_tiles
    mean = sums.sum(dim=0) / (count * num_patches)
    covariance = products / (count * num_patches) - mean.outer(mean)
    std = covariance.diagonal().clamp(min=1e-12).sqrt()
    places = (sums / count - mean) / std
    between = places.T @ places / num_patches
    directions = place_directions(between, covariance / std.outer(std) - between)
    nearest = torch.cdist((sample - mean) / std @ directions, places @ directions).argmin(dim=-1)  # [B, M]
    told = (nearest == torch.arange(num_patches)).double().mean()
    found = (mean, std, places, directions, told)
    return TokenStatistics(*(value.float().to(teacher.device) for value in found))


def place_directions(between: Tensor, within: Tensor) -> Tensor:
    """Give the directions (D, R) in which places differ most for what tokens of one place differ.

    Args:
        between: (D, D) covariance of the places' means.
        within: (D, D) covariance of tokens around the mean of their place.
    """
    values, vectors = torch.linalg.eigh(within + RIDGE * torch.eye(len(within), dtype=within.dtype))
    whitening = vectors / values.clamp(min=RIDGE).sqrt() @ vectors.T
    return whitening @ torch.linalg.eigh(whitening @ between @ whitening).eigenvectors[:, -MAX_DIRECTIONS:]
