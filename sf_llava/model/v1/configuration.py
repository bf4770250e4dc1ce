"""The numbers of a SparseFormer v1: ``SparseFormerV1Config`` and the three that were released."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from sf_llava.configuration import (
    COUNTS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PARAMETERS,
    OPTIONAL_COUNTS,
    check_counts,
    check_pictures,
    is_number,
    read_channels,
    refuse_unknown,
)

IMAGENET_CROP = 224 / 256
MLP_RATIO = 4
MIXING_RATIO = 4
_COUNTED = (
    *("image_size", "num_latents", "hidden_size", "focusing_size", "num_focusing_iterations", "num_hidden_layers"),
    *("num_attention_heads", "conv_channels", "num_sampling_points", "mixing_points"),
)
_RANGES = {name: (1, COUNTS[name]) for name in _COUNTED} | {"num_classes": (1, OPTIONAL_COUNTS["num_classes"])}


class SparseFormerV1Config(PretrainedConfig):
    """Configuration of a :class:`~sf_llava.model.v1.SparseFormerV1Model`.

    Args:
        image_size: side of the square input in pixels that the model was made for; any size is accepted at run time.
        is_video: whether it reads clips, with RoIs in space and time; any number of frames is accepted at run time.
        num_latents: N, the number of latent tokens and RoIs.
        hidden_size: width of the cortex.
        focusing_size: width of the focusing transformer.
        num_focusing_iterations: iterations of the focusing transformer, with shared weights.
        num_hidden_layers: cortex blocks, the first of which samples too.
        num_attention_heads: heads of every block, in focusing and cortex.
        conv_channels: C, channels of the early convolution's feature map.
        num_sampling_points: P, points sampled for a token in each iteration.
        mixing_points: rows of the generated point-mixing matrix.
        num_classes: size of the classifier.
        layer_norm_eps: of all layer norms but the one before the mixing parameters.
        image_mean, image_std: normalisation of the input.
        interpolation, crop_fraction, resize_mode: as of a :class:`~sf_llava.configuration.SparseFormerConfig`.
        initializer_range: standard deviation of new weights.
        kwargs: fields of every configuration of transformers.

    Raises:
        ValueError: a value that no model can be built from, or an unknown field; the message names it.
    """

    model_type = "sparseformer_v1"

    def __init__(
        self,
        image_size: int = 224,
        is_video: bool = False,
        num_latents: int = 49,
        hidden_size: int = 512,
        focusing_size: int = 256,
        num_focusing_iterations: int = 4,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 64,
        conv_channels: int = 96,
        num_sampling_points: int = 36,
        mixing_points: int = 36,
        num_classes: int = 1000,
        layer_norm_eps: float = 1e-6,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bicubic",
        crop_fraction: float = IMAGENET_CROP,
        resize_mode: str = "shortest",
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.is_video = is_video
        self.num_latents = num_latents
        self.hidden_size = hidden_size
        self.focusing_size = focusing_size
        self.num_focusing_iterations = num_focusing_iterations
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.conv_channels = conv_channels
        self.num_sampling_points = num_sampling_points
        self.mixing_points = mixing_points
        self.num_classes = num_classes
        self.layer_norm_eps = layer_norm_eps
        self.image_mean = read_channels("image_mean", image_mean)
        self.image_std = read_channels("image_std", image_std)
        self.interpolation = interpolation
        self.crop_fraction = crop_fraction
        self.resize_mode = resize_mode
        self.initializer_range = initializer_range
        refuse_unknown(SparseFormerV1Config, kwargs)
        self._check()
        check_pictures(self)
        super().__init__(**kwargs)

    @property
    def num_axes(self) -> int:
        """Axes of RoIs and points: x and y, in clips time too."""
        return 3 if self.is_video else 2

    def _check(self) -> None:
        check_counts(self, _RANGES)
        if not isinstance(self.is_video, bool):
            raise ValueError(f"is_video must be true or false, not {self.is_video!r}")
        if self.num_sampling_points < 2:
            raise ValueError("num_sampling_points must be at least 2: offsets are normalised by their spread")
        for name in ("hidden_size", "focusing_size"):
            if (width := getattr(self, name)) % self.num_attention_heads or width % MIXING_RATIO:
                heads = f"num_attention_heads {self.num_attention_heads}"
                raise ValueError(f"{name} {width} is not a multiple of {heads} and of {MIXING_RATIO}")
        for name in ("layer_norm_eps", "initializer_range"):
            if not is_number(value := getattr(self, name)) or value < 0:
                raise ValueError(f"{name} must be a number, 0 at least, not {value!r}")
        if (size := self._estimate_parameters()) > MAX_PARAMETERS:
            raise ValueError(f"these numbers make a model of {size:,} parameters, more than {MAX_PARAMETERS:,}")

    def _estimate_parameters(self) -> int:
        """Count the parameters of blocks and of both generators and projections of the mixing, nearly all there are."""
        blocks = (4 + 2 * MLP_RATIO) * (self.num_hidden_layers * self.hidden_size**2 + self.focusing_size**2)
        generated = self.conv_channels**2 + self.mixing_points * self.num_sampling_points
        decoded = self.mixing_points * self.conv_channels
        return blocks + (self.hidden_size + self.focusing_size) * (generated // MIXING_RATIO + decoded)


V1_PRESETS: dict[str, dict[str, int]] = {
    "sf-v1-tiny": dict(num_latents=49, focusing_size=256, hidden_size=512, num_hidden_layers=8),
    "sf-v1-small": dict(num_latents=64, focusing_size=320, hidden_size=640, num_hidden_layers=8),
    "sf-v1-base": dict(num_latents=81, focusing_size=384, hidden_size=768, num_hidden_layers=10),
}


def v1_preset(name: str, **changes: Any) -> SparseFormerV1Config:
    """Build the configuration of a released SparseFormer v1, with any field changed.

    Raises:
        ValueError: no preset or no field has that name; the message lists the valid ones.
    """
    if name not in V1_PRESETS:
        raise ValueError(f"unknown preset {name!r}; known presets: {', '.join(V1_PRESETS)}")
    return SparseFormerV1Config(**(V1_PRESETS[name] | changes))
