"""``sf-llava benchmark costs``: parameters and multiply-adds beside those of the released models and of the paper.

"official" was measured on the released code, "paper" is printed in Tables 1, 2, 4, 6 and 7 (of v1 beside its released
weights, without the early convolution's 0.18 G); both count multiply-adds, with every token in every block. "embedding
only" runs where no hidden state is asked for: CLS alone in the last block. Teachers with fewer tokens (Table 4) count
what they match tokens by as well, but no classifier.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sf_llava.configuration import PRESETS, preset
from sf_llava.measure.baselines import DiffRateTeacher, ToMeTeacher
from sf_llava.model import SparseFormerModel
from sf_llava.model.costs import count_multiply_adds, count_parameters
from sf_llava.model.v1 import SparseFormerV1Model, v1_preset
from sf_llava.model.v1.configuration import V1_PRESETS
from sf_llava.reduction.diffrate import VIT_B_11_5, VIT_L_42_3
from sf_llava.report import print_table, save
from sf_llava.teachers.architectures import build_image_tower, build_teacher
from sf_llava.teachers.base import Teacher


@dataclass
class Cost:
    """One encoder; parameters in millions, multiply-adds in billions, None where nothing was published.

    ``reduction`` names what leaves a teacher fewer tokens, one of ``REDUCTIONS``.
    """

    encoder: str
    image_size: int
    num_latents: int | None = None
    official_parameters: float | None = None
    official_multiply_adds: float | None = None
    paper_parameters: float | None = None
    paper_multiply_adds: float | None = None
    parameters: float = 0.0
    multiply_adds: float = 0.0
    embedding_multiply_adds: float = 0.0
    reduction: str | None = None

    @property
    def name(self) -> str:
        """For the table."""
        return self.encoder if self.reduction is None else f"{self.encoder}, {self.reduction}"

    @property
    def tokens(self) -> str:
        """What an encoder reads by, for the table; empty for a ViT."""
        has_cls = self.encoder in PRESETS and preset(self.encoder).use_cls
        return f"{self.num_latents}{' + CLS' * has_cls}" if self.num_latents else ""

    def count(self) -> "Cost":
        """Build the encoder without memory for its weights, count it."""
        with torch.device("meta"):
            is_ours = self.encoder in PRESETS
            model: nn.Module
            if is_ours:
                model = SparseFormerModel(preset(self.encoder, num_latents=self.num_latents))
            elif self.encoder in V1_PRESETS:
                model = SparseFormerV1Model(v1_preset(self.encoder, num_latents=self.num_latents))
            elif self.reduction is not None:
                model = REDUCTIONS[self.reduction](build_teacher(self.encoder))
            else:
                model = build_image_tower(self.encoder, self.image_size)
        self.parameters = count_parameters(model) / 1e6
        everything = {"output_hidden_states": True} if is_ours else {}
        self.multiply_adds = count_multiply_adds(model, self.image_size, **everything) / 1e9
        self.embedding_multiply_adds = count_multiply_adds(model, self.image_size) / 1e9
        return self


REDUCTIONS: dict[str, Callable[[Teacher], nn.Module]] = {
    **{f"ToMe {count}": partial(ToMeTeacher, num_merged=count) for count in (8, 12, 16, 23, 40)},
    "DiffRate 11.5": partial(DiffRateTeacher, schedule=VIT_B_11_5),
    "DiffRate 42.3": partial(DiffRateTeacher, schedule=VIT_L_42_3),
}
"""Of Table 4: ToMe by r, the tokens merged in a block; DiffRate by its published schedules."""


PUBLISHED = (
    Cost("sf-b-augreg-224", 224, 48, 64.19, 3.785, 64, 3.8),
    Cost("sf-b-augreg-224", 224, 79, None, 6.15, None, 6.2),
    Cost("sf-b-augreg-224", 320, 79, None, 6.28, None, 6.3),
    Cost("sf-b-clip-224", 224, 48, 63.81),
    Cost("sf-l-augreg-224", 224, 48, 212.43, 11.36, 213, 11.4),
    Cost("sf-l-augreg-384", 384, 48, None, 11.59, None, 11.6),
    Cost("sf-l-augreg-224", 224, 79, None, 18.57, None, 18.6),
    Cost("sf-l-augreg-224", 320, 79, None, 18.70, None, 18.7),
    Cost("sf-l-augreg-384", 384, 143, None, 33.93, None, 33.9),
    Cost("sf-l-augreg-384", 384, 195, None, 46.44, None, 46.5),
    Cost("sf-l-clip-224", 224, 63, 212.19, 14.84, None, 14.8),
    Cost("sf-l-clip-224", 224, 64, None, 15.07),
    Cost("sf-l-clip-224", 224, 127, None, 29.89, None, 30.0),
    Cost("sf-l-clip-224", 224, 128, None, 30.1),
    Cost("sf-l-clip-336", 336, 143, None, 33.85, None, 33.9),
    Cost("sf-b-siglip-224", 224, 49),
    Cost("sf-so400m-siglip-384", 384, 64),
    Cost("sf-so400m-siglip-384", 384, 182),
    Cost("sf-l-dinov2-224", 224, 64),
    Cost("sf-mini", 64, 16),
    Cost("sf-v1-tiny", 224, 49, 31.522, 2.178, 32, 2.0),
    Cost("sf-v1-small", 224, 64, 47.575, 3.990, 48, 3.8),
    Cost("sf-v1-base", 224, 81, 81.077, 7.987, 81, 7.8),
    Cost("timm:vit_base_patch16_224", 224, None, None, None, None, 17.5),
    Cost("timm:vit_large_patch16_224", 224, None, None, None, None, 61.6),
    Cost("timm:vit_large_patch16_384", 384, None, None, None, None, 191),
    Cost("open_clip:ViT-L-14-quickgelu", 224, None, None, 81.1, None, 81.1),
    Cost("open_clip:ViT-L-14-336-quickgelu", 336, None, None, 191, None, 191),
    Cost("timm:vit_base_patch16_224", 224, reduction="ToMe 16", paper_multiply_adds=8.8),
    Cost("timm:vit_base_patch16_224", 224, reduction="DiffRate 11.5", paper_multiply_adds=11.5),
    Cost("timm:vit_large_patch16_224", 224, reduction="ToMe 12", paper_multiply_adds=20.8),
    Cost("timm:vit_large_patch16_224", 224, reduction="ToMe 8", paper_multiply_adds=31.0),
    Cost("timm:vit_large_patch16_224", 224, reduction="DiffRate 42.3", paper_multiply_adds=42.3),
    Cost("timm:vit_large_patch16_384", 384, reduction="ToMe 40", paper_multiply_adds=56.0),
    Cost("timm:vit_large_patch16_384", 384, reduction="ToMe 23", paper_multiply_adds=96.4),
    Cost("timm:vit_base_patch16_siglip_224", 224),
    Cost("timm:vit_so400m_patch14_siglip_384", 384),
    Cost("timm:vit_large_patch14_dinov2", 224),
)


def run(output: Path) -> list[Cost]:
    """Count every encoder, print the table, write ``costs.json``."""
    costs = [cost.count() for cost in PUBLISHED]
    rows = [
        [
            cost.name,
            cost.image_size,
            cost.tokens,
            *_compared(cost.parameters, cost.official_parameters, cost.paper_parameters),
            *_compared(cost.multiply_adds, cost.official_multiply_adds, cost.paper_multiply_adds),
            f"{cost.embedding_multiply_adds:.2f}",
        ]
        for cost in costs
    ]
    published = ["official", "paper", "off by"]
    header = ["encoder", "px", "tokens", "M params", *published, "G mult-adds", *published, "embedding only"]
    print_table("Parameters and multiply-adds of one image", header, rows)
    units = "millions of parameters, billions of multiply-adds"
    save(output, "costs", "cpu", [asdict(cost) for cost in costs], units=units)
    return costs


def deviation(counted: float, official: float | None, paper: float | None) -> float | None:
    """Relative deviation from the official number, or from the paper's rounded one where there is no other."""
    reference = official or paper
    return counted / reference - 1 if reference else None


def _compared(counted: float, official: float | None, paper: float | None) -> list[str]:
    off = deviation(counted, official, paper)
    return [f"{counted:.2f}", f"{official or ''}", f"{paper or ''}", "" if off is None else f"{off:+.2%}"]
