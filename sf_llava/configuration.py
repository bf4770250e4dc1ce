"""The numbers of every SparseFormer: ``SparseFormerConfig`` and the named presets.

Token accounting: ``num_latents`` is what an LLM receives; the cortex runs ``num_latents + 1`` tokens (latents and CLS),
without ``use_cls`` the latents alone.
The paper counts "64 tokens" as 63 latents + CLS; our presets give N latents + CLS, so exactly N reach a projector.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
AUGREG_MEAN = AUGREG_STD = (0.5, 0.5, 0.5)
AUGREG_CROP = 0.9
"""Of AugReg's models at 224 pixels; at 384 the crop keeps all."""
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DINOV2_CROP = 224 / 256

COUNTS = {
    "image_size": 16_384,
    "num_latents": 65_536,
    "hidden_size": 65_536,
    "focusing_size": 65_536,
    "num_focusing_iterations": 64,
    "num_hidden_layers": 256,
    "num_attention_heads": 1024,
    "focusing_num_attention_heads": 1024,
    "intermediate_size": 262_144,
    "conv_channels": 1024,
    "num_sampling_points": 4096,
    "mixing_size": 65_536,
    "mixing_points": 4096,
    "teacher_tiles": 64,
}
"""Fields that count something, from 1, with bounds far above any encoder: a damaged file is refused before any work."""
MAX_PARAMETERS = 32_000_000_000
OPTIONAL_COUNTS = {"projection_dim": 65_536, "num_classes": 1_000_000, "num_teacher_layers": 256}
"""Fields that count something, 0 for nothing."""

FOREIGN_FIELDS = frozenset(
    [
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "image_processor_type",
        "model_type",
        "quantization_config",
        "tie_last_hidden_states",
        "tie_word_embeddings",
        "torchscript",
    ]
)
"""What transformers takes or writes beside the attributes of its ``PreTrainedConfig`` and names with an underscore."""


class SparseFormerConfig(PretrainedConfig):
    """Configuration of a :class:`~sf_llava.model.SparseFormerModel`.

    Args:
        image_size: side of the square input in pixels that the encoder was made for; any size is accepted at run time.
        num_latents: N, the number of latent tokens and RoIs (CLS not counted), where a call names no other.
        num_latents_range: lowest and highest number of latents that a call may name, those that an elastic encoder was
            trained with; None for an encoder of ``num_latents`` alone.
        use_cls: whether CLS stands before the latents and gives the embedding; without it (SigLIP students) attention
            pools the latents.
        hidden_size: width of the cortex, the teacher's width.
        focusing_size: width of the focusing transformer; the paper takes half of ``hidden_size``.
        num_focusing_iterations: iterations of the focusing transformer, with shared weights.
        num_hidden_layers: cortex blocks: the teacher's blocks minus the truncated ones.
        num_attention_heads: heads of a cortex block, the teacher's.
        focusing_num_attention_heads: heads of the focusing transformer.
        intermediate_size: hidden width of a cortex MLP, the teacher's.
        hidden_act: activation of the cortex, the teacher's (``quick_gelu`` for OpenAI's CLIP, ``gelu`` for AugReg).
            The focusing transformer always uses GELU.
        layer_norm_eps: of the focusing transformer.
        cortex_layer_norm_eps: of the cortex and the final norm, the teacher's.
        conv_channels: C, channels of the early convolution's feature map.
        num_sampling_points: P, points sampled for a token in each iteration; a square number starts as a grid.
        mixing_size: inner width of the generator of adaptive mixing parameters.
        mixing_points: rows of the generated point-mixing matrix.
        projection_dim: size of ``image_embeds`` for CLIP students, 0 where there is no projection (AugReg).
        num_classes: size of the classifier for AugReg students, 0 for CLIP.
        image_mean, image_std: normalisation of the input, the teacher's.
        interpolation: how pictures are resized, ``bicubic`` or ``bilinear``, as for the teacher.
        crop_fraction: part of the resized picture's shorter side that the centre crop keeps, the teacher's (CLIP: 1).
        resize_mode: ``shortest`` keeps the picture's proportions, ``squash`` does not, the teacher's (SigLIP: squash).
        num_teacher_layers: blocks of the teacher, of which the cortex is the last; by them a LLaVA's hidden state is
            found again. 0 where it is not known.
        teacher_tiles: G of an encoder that reads a picture in place of G x G tiles of its teacher, and in place of the
            whole of it that a LLaVA with tiles shows beside them; 1 for one that reads what its teacher reads.
        initializer_range: standard deviation of new weights.
        kwargs: fields of every configuration of transformers.

    Raises:
        ValueError: a value that no encoder can be built from, or an unknown field; the message names it.
    """

    model_type = "sparseformer"

    def __init__(
        self,
        image_size: int = 224,
        num_latents: int = 64,
        num_latents_range: Sequence[int] | None = None,
        hidden_size: int = 1024,
        focusing_size: int = 512,
        num_focusing_iterations: int = 4,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 16,
        focusing_num_attention_heads: int = 8,
        intermediate_size: int = 4096,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        cortex_layer_norm_eps: float = 1e-5,
        conv_channels: int = 64,
        num_sampling_points: int = 16,
        mixing_size: int = 128,
        mixing_points: int = 32,
        projection_dim: int = 768,
        num_classes: int = 0,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        interpolation: str = "bicubic",
        crop_fraction: float = 1.0,
        resize_mode: str = "shortest",
        use_cls: bool = True,
        num_teacher_layers: int = 0,
        teacher_tiles: int = 1,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.num_latents = num_latents
        self.num_latents_range = num_latents_range if num_latents_range is None else list(num_latents_range)
        self.hidden_size = hidden_size
        self.focusing_size = focusing_size
        self.num_focusing_iterations = num_focusing_iterations
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.focusing_num_attention_heads = focusing_num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.cortex_layer_norm_eps = cortex_layer_norm_eps
        self.conv_channels = conv_channels
        self.num_sampling_points = num_sampling_points
        self.mixing_size = mixing_size
        self.mixing_points = mixing_points
        self.projection_dim = projection_dim
        self.num_classes = num_classes
        self.interpolation = interpolation
        self.crop_fraction = crop_fraction
        self.resize_mode = resize_mode
        self.use_cls = use_cls
        self.num_teacher_layers = num_teacher_layers
        self.teacher_tiles = teacher_tiles
        self.initializer_range = initializer_range
        refuse_unknown(SparseFormerConfig, kwargs)
        self._check()
        self.image_mean = read_channels("image_mean", image_mean)
        self.image_std = read_channels("image_std", image_std)
        check_pictures(self)
        super().__init__(**kwargs)

    @property
    def hidden_state_layers(self) -> range:
        """Numbers of the hidden states that can be asked for: the cortex input is 0, and -1 the last block's output."""
        return range(-self.num_hidden_layers - 1, self.num_hidden_layers + 1)

    def _check(self) -> None:
        check_counts(self, _COUNT_RANGES)
        if (known := self.num_latents_range) is not None and not (
            len(known) == 2
            and all(isinstance(value, int) for value in known)
            and 1 <= known[0] <= self.num_latents <= known[1] <= COUNTS["num_latents"]
        ):
            raise ValueError(
                f"num_latents_range must be the lowest and highest number of latents, with num_latents "
                f"{self.num_latents} between them, not {known!r}"
            )
        if self.num_sampling_points < 2:
            raise ValueError("num_sampling_points must be at least 2: offsets are normalised by their spread")
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("focusing_size", "focusing_num_attention_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width} {getattr(self, width)} is not a multiple of {heads} {getattr(self, heads)}")
        if self.focusing_size % 8:
            raise ValueError(f"focusing_size {self.focusing_size} must be a multiple of 8 for the position encoding")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 4 for the position encoding")
        if (size := self._estimate_parameters()) > MAX_PARAMETERS:
            raise ValueError(f"these numbers make an encoder of {size:,} parameters, more than {MAX_PARAMETERS:,}")
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACT2FN:
            raise ValueError(f"unknown hidden_act {self.hidden_act!r}; known: {', '.join(sorted(ACT2FN))}")
        for name in ("layer_norm_eps", "cortex_layer_norm_eps", "initializer_range"):
            if not is_number(value := getattr(self, name)) or value < 0:
                raise ValueError(f"{name} must be a number, 0 at least, not {value!r}")
        if not isinstance(self.use_cls, bool):
            raise ValueError(f"use_cls must be true or false, not {self.use_cls!r}")

    def _estimate_parameters(self) -> int:
        """Count the parameters of the blocks and of both generators of mixing matrices, nearly all there are."""
        block = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        generator = self.mixing_size * (self.conv_channels**2 + self.mixing_points * self.num_sampling_points)
        return self.num_hidden_layers * block + 12 * self.focusing_size**2 + 2 * generator

    def check_num_latents(self, num_latents: int) -> None:
        """Check that a call may name this number of latents.

        Raises:
            ValueError: the encoder was not trained with it.
        """
        lowest, highest = self.num_latents_range or (self.num_latents, self.num_latents)
        if not lowest <= num_latents <= highest:
            if self.num_latents_range is None:
                known = f"{self.num_latents} alone; one that was bootstrapped with `elastic` takes others"
            else:
                known = f"{lowest} to {highest}"
            raise ValueError(f"{num_latents} latents: this encoder was trained with {known}")

    @property
    def num_tokens(self) -> int:
        """Tokens of the cortex: latents, and CLS where there is one."""
        return self.num_latents + self.use_cls


_COUNT_RANGES = {name: (1, highest) for name, highest in COUNTS.items()} | {
    name: (0, highest) for name, highest in OPTIONAL_COUNTS.items()
}


def check_counts(config: PretrainedConfig, ranges: Mapping[str, tuple[int, int]]) -> None:
    """Check the fields that count something: whole numbers from the lowest to the highest.

    Raises:
        ValueError: names the first that is not.
    """
    for name, (lowest, highest) in ranges.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            kind = "a positive whole number" if lowest else "0 or a positive whole number"
            raise ValueError(f"{name} must be {kind} up to {highest:,}, not {value!r}")


def check_pictures(config: PretrainedConfig) -> None:
    """Check the fields that say how pictures are prepared.

    Raises:
        ValueError: names the first that no picture can be prepared by.
    """
    if config.interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"unknown interpolation {config.interpolation!r}; known: bicubic, bilinear")
    if not is_number(config.crop_fraction) or not 0 < config.crop_fraction <= 1:
        raise ValueError(f"crop_fraction must be a number above 0 and at most 1, not {config.crop_fraction!r}")
    if config.resize_mode not in ("shortest", "squash"):
        raise ValueError(f"unknown resize_mode {config.resize_mode!r}; known: shortest, squash")
    if min(config.image_std) <= 0:
        raise ValueError(f"image_std must be positive, not {list(config.image_std)}: pixels are divided by it")


def read_channels(name: str, value: object) -> tuple[float, ...]:
    """Read a number for each of red, green and blue; JSON has them as a list."""
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(is_number, value)):
        raise ValueError(f"{name} must be three numbers, one for each of red, green and blue, not {value!r}")
    return tuple(value)


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def field_names(kind: type[PretrainedConfig] = SparseFormerConfig) -> list[str]:
    """List the fields of a kind of configuration, those of transformers' own configurations left out."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD][1:]


def refuse_unknown(kind: type[PretrainedConfig], kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for fields that neither this kind nor transformers' own configuration has: misspelt, say."""
    properties = {name for name in dir(PretrainedConfig) if not callable(getattr(PretrainedConfig, name))}
    known = FOREIGN_FIELDS | properties | set(vars(PretrainedConfig()))
    if unknown := [name for name in kwargs if name not in known and not name.startswith("_")]:
        raise ValueError(
            f"unknown field{'s' * (len(unknown) > 1)} {', '.join(unknown)} of a SparseFormer's configuration; known: "
            f"{', '.join(field_names(kind))}"
        )


_BASE = dict(
    hidden_size=768,
    focusing_size=384,
    num_hidden_layers=8,
    num_attention_heads=12,
    focusing_num_attention_heads=6,
    intermediate_size=3072,
)
_LARGE = dict(
    hidden_size=1024,
    focusing_size=512,
    num_hidden_layers=16,
    num_attention_heads=16,
    focusing_num_attention_heads=8,
    intermediate_size=4096,
)
_AUGREG = dict(
    hidden_act="gelu",
    cortex_layer_norm_eps=1e-6,
    projection_dim=0,
    num_classes=1000,
    image_mean=AUGREG_MEAN,
    image_std=AUGREG_STD,
    num_latents=49,
)
_SIGLIP = dict(
    hidden_act="gelu_pytorch_tanh",
    cortex_layer_norm_eps=1e-6,
    projection_dim=0,
    use_cls=False,
    image_mean=SIGLIP_MEAN,
    image_std=SIGLIP_STD,
    resize_mode="squash",
)
_DINOV2 = dict(
    hidden_act="gelu",
    cortex_layer_norm_eps=1e-6,
    projection_dim=0,
    image_mean=IMAGENET_MEAN,
    image_std=IMAGENET_STD,
    crop_fraction=DINOV2_CROP,
)
_SO400M = dict(
    hidden_size=1152,
    focusing_size=576,
    num_hidden_layers=18,
    num_attention_heads=16,
    focusing_num_attention_heads=9,
    intermediate_size=4304,
)

PRESETS: dict[str, dict[str, Any]] = {
    "sf-b-augreg-224": _BASE | _AUGREG | dict(crop_fraction=AUGREG_CROP),
    "sf-l-augreg-224": _LARGE | _AUGREG | dict(crop_fraction=AUGREG_CROP),
    "sf-l-augreg-384": _LARGE | _AUGREG | dict(image_size=384, num_latents=144),
    "sf-b-clip-224": _BASE | dict(projection_dim=512, num_latents=49),
    "sf-l-clip-224": _LARGE | dict(projection_dim=768, num_latents=64),
    "sf-l-clip-336": _LARGE | dict(projection_dim=768, num_latents=144, image_size=336),
    "sf-b-siglip-224": _BASE | _SIGLIP | dict(num_latents=49),
    "sf-so400m-siglip-384": _SO400M | _SIGLIP | dict(num_latents=182, image_size=384),
    "sf-l-dinov2-224": _LARGE | _DINOV2 | dict(num_latents=64),
    "sf-mini": dict(
        image_size=64,
        num_latents=16,
        hidden_size=128,
        focusing_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        focusing_num_attention_heads=1,
        intermediate_size=512,
        hidden_act="silu",
        projection_dim=128,
    ),
}


def preset(name: str, **changes: Any) -> SparseFormerConfig:
    """Build the configuration called ``name``, with any field changed: ``preset("sf-l-clip-224", num_latents=128)``.

    Raises:
        ValueError: no preset or no field has that name; the message lists the valid ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known presets: {', '.join(PRESETS)}")
    return SparseFormerConfig(**(PRESETS[name] | changes))
