"""What a family of ViTs needs beside plain blocks, one row a family; and why what cannot be inherited cannot.

Widths, heads, activation and epsilon are read from the model at hand, as is the number of registers; LayerScale is
folded into the weights in front of it wherever it is found (see ``canonical_block``). The rest is in this table.
"""

from dataclasses import dataclass

from sf_llava.configuration import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
)


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
        use_cls: whether CLS stands first and gives the embedding; without it attention pools the patches.
        pads_texts: whether its text tower reads texts in lower case, padded to its full length, without a mask.
        any_size: whether it fits its positions to the size of a picture, which preprocessing then decides.
        mean, std, resize_mode: preprocessing, for models that come without.
    """

    use_cls: bool
    pads_texts: bool
    any_size: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_mode: str


CLIP = Family(
    use_cls=True,
    pads_texts=False,
    any_size=False,
    mean=OPENAI_CLIP_MEAN,
    std=OPENAI_CLIP_STD,
    resize_mode="shortest",
)
SIGLIP = Family(use_cls=False, pads_texts=True, any_size=False, mean=SIGLIP_MEAN, std=SIGLIP_STD, resize_mode="squash")
DINOV2 = Family(
    use_cls=True,
    pads_texts=False,
    any_size=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    resize_mode="shortest",
)

ROPE = "its attention turns queries and keys by their place on the grid (RoPE), and latents have no such place"
SWIGLU = "its MLPs are gated (SwiGLU), which a cortex block's are not"
NAFLEX = "its pictures differ in shape (NaFlex); the SigLIP 2 models of a fixed resolution work"
NO_HEAD = "it comes without the head that pools its tokens, so it has no embedding to align with"
