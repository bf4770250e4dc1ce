"""How far an exported file is from the model that it was made of."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.export.formats import Run

BATCHES = (1, 3, 32)
MAX_ERROR = 1e-4
"""Of a float32 file, as a share of the largest value (at least 1)."""
MIN_COSINE = 0.98
"""Of a file with 8-bit weights, of its worst token."""


@dataclass(frozen=True)
class Difference:
    """What the batches of a check differ by.

    Attributes:
        num_images: pictures that were read, those of all batches together.
        error: largest absolute difference.
        largest: largest absolute value of the model's own output.
        cosine: the smallest between a token (or embedding) and the model's own.
        mean_cosine: their mean.
    """

    num_images: int
    error: float
    largest: float
    cosine: float
    mean_cosine: float

    def __str__(self) -> str:
        return (
            f"largest difference {self.error:.1e} (values up to {self.largest:.3g}), cosine at least "
            f"{self.cosine:.6f}, {self.mean_cosine:.6f} on average"
        )

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)

    def require(self, int8: bool) -> None:
        """Refuse a file that is too far from the model.

        Raises:
            ValueError: it is; the message says by how much.
        """
        allowed = MAX_ERROR * max(self.largest, 1)
        if not int8 and not self.error <= allowed:
            raise ValueError(f"the exported file does not compute what the model does: {self}; allowed {allowed:.1e}")
        if int8 and not self.cosine >= MIN_COSINE:
            raise ValueError(f"8-bit weights change this model too much: {self}; allowed {MIN_COSINE}: export float32")


@torch.inference_mode()
def compare(model: Run, exported: Run, pixels: Tensor) -> Difference:
    """Run both on batches of 1, 3 and 32 images.

    Args:
        model, exported: from pixels to embeddings (B, E) or tokens (B, T, D).
        pixels: (B, 3, S, S) float32, of real pictures; fewer than 32 are shown several times.
    """
    count, expected, found = 0, [], []
    for size in BATCHES:
        batch = pixels[torch.arange(count, count + size) % len(pixels)].contiguous()
        expected.append(model(batch).flatten(0, -2).double())
        found.append(exported(batch).flatten(0, -2).double())
        count += size
    ours, theirs = torch.cat(expected), torch.cat(found)
    cosines = F.cosine_similarity(ours, theirs, dim=-1)
    return Difference(
        count,
        (ours - theirs).abs().max().item(),
        ours.abs().max().item(),
        cosines.min().item(),
        cosines.mean().item(),
    )
