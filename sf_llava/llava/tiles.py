"""LLaVAs that cut a picture into tiles, laid flat: every tile becomes N latents, in the model and in its processor.

Stock LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision put the patches of all tiles on one grid, cut its padding off and
end its rows with a newline. Latents lie on no grid. While a SparseFormer is their tower, model and processor become the
classes here, which lay a picture of K tiles out as

    picture's tokens T, then for each tile its T tokens and a newline:  (K + 1) T + K
    a picture that is one view alone (of several in a OneVision prompt):  T + 1
    a video of F frames: F T, in OneVision with one newline behind it

An encoder that was bootstrapped to read whole pictures in place of G x G tiles reads each in one view, padded to a
square, and no newline is needed:

    a picture: T

Their configurations have names of their own, so that a saved directory loads as what it is once :func:`register` has
made them known to transformers' Auto classes, as importing ``sf_llava.llava`` does.

Letters: V views of a picture (the whole of it, then K tiles), T tokens a view (N latents, one more with CLS), W width
of the LLM.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoModel,
    LlavaNextVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionModel,
    LlavaOnevisionProcessor,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.image_processing_utils import select_best_resolution

from sf_llava.llava.reading import layers_read, strategy_of


def count_views(height: int, width: int, grid_pinpoints: Sequence[Sequence[int]], side: int) -> int:
    """Count V, the views of a picture of ``height`` x ``width`` pixels: the whole of it and its tiles of ``side``."""
    best = select_best_resolution((height, width), list(grid_pinpoints))
    return 1 + (best[0] // side) * (best[1] // side)


def count_all_views(
    sizes: Iterable[Sequence[int]], grid_pinpoints: Sequence[Sequence[int]], side: int, in_prompts: Any = None
) -> list[int]:
    """Count the views of each of several pictures.

    Args:
        sizes: (height, width) of each in pixels.
        grid_pinpoints, side: as of :func:`count_views`.
        in_prompts: how many of them each prompt has, where of several in one prompt none is tiled; None: all are.
    """
    tiled = None if in_prompts is None else [int(count) == 1 for count in in_prompts for _ in range(int(count))]
    return [
        count_views(int(height), int(width), grid_pinpoints, side) if tiled is None or tiled[number] else 1
        for number, (height, width) in enumerate(sizes)
    ]


def is_whole(grid_pinpoints: Sequence[Sequence[int]], side: int) -> bool:
    """Tell whether pictures are read whole, in one view in place of all tiles: there is no other size."""
    return [list(size) for size in grid_pinpoints] == [[side, side]]


def count_tokens(num_views: int, tokens_per_view: int) -> int:
    """Count the tokens of a picture of V views, of T each, newlines among them."""
    return num_views * tokens_per_view + max(num_views - 1, 1)


def lay_flat(views: Tensor, newline: Tensor) -> Tensor:
    """Lay the views of a picture one behind the other, a newline behind every tile.

    The whole picture comes first, without a newline where tiles follow it, as in stock models.

    Args:
        views: (V, T, W) projected tokens.
        newline: (W,).

    Returns:
        (V T + V - 1, W); (T + 1, W) for one view.
    """
    ended = torch.cat([views, newline.to(views).expand(len(views), 1, -1)], dim=1)  # [V, T + 1, W]
    return ended[0] if len(views) == 1 else torch.cat([views[0], ended[1:].flatten(0, 1)])


class _FlatModel:
    """What the model inside does with the views that its tower has read."""

    image_newline: Tensor
    config: Any
    vision_tower: Callable[..., Any]
    multi_modal_projector: Callable[[Tensor], Tensor]

    def pack_image_features(
        self, image_features: Sequence[Tensor], image_sizes: Any, *options: Any, **named_options: Any
    ) -> tuple[list[Tensor], Tensor]:
        """Lay pictures (V, T, W) flat; how a grid would be packed (sizes, aspect ratio) does not matter."""
        packed = [lay_flat(views, self.image_newline) for views in image_features]
        return packed, torch.tensor([len(tokens) for tokens in packed], device=image_features[0].device)

    def get_image_features(
        self, pixel_values: Tensor, image_sizes: Any = None, batch_num_images: Any = None, **options: Any
    ) -> Any:
        """Read pictures (I, V, 3, S, S) as the stock model does, or where they are read whole the last view of each.

        Returns:
            What the tower gave, with ``pooler_output``: a (tokens, W) for each picture.
        """
        config = self.config
        pinpoints, side = config.image_grid_pinpoints, config.vision_config.image_size
        if not is_whole(pinpoints, side):
            prompts = {} if batch_num_images is None else {"batch_num_images": batch_num_images}
            return super().get_image_features(pixel_values, image_sizes, **prompts, **options)  # type: ignore[misc]
        counts = count_all_views(image_sizes, pinpoints, side, batch_num_images)
        squares = torch.stack([views[count - 1] for views, count in zip(pixel_values, counts, strict=True)])
        wanted = {name: value for name, value in options.items() if name == "output_sampling_points"}
        outputs = self.vision_tower(squares, output_hidden_states=True, return_dict=True, **wanted)
        tokens = torch.cat([outputs.hidden_states[layer] for layer in layers_read(config)], dim=-1)
        tokens = tokens[:, 1:] if strategy_of(config) == "default" else tokens
        outputs.pooler_output = list(self.multi_modal_projector(tokens))
        return outputs


class _FlatProcessor:
    """How many image tokens a processor writes."""

    image_processor: Any
    image_token: str
    video_token: str
    vision_feature_select_strategy: str
    num_additional_image_tokens: int
    newlines_per_video = 0

    @property
    def tokens_per_view(self) -> int:
        """T."""
        return 1 + self.num_additional_image_tokens - (self.vision_feature_select_strategy == "default")

    def replace_image_token(self, image_inputs: dict, image_idx: int = 0, **options: Any) -> str:
        """Write a picture's image tokens; ``image_inputs`` are those that its image processor made."""
        pinpoints, side = self.image_processor.image_grid_pinpoints, image_inputs["pixel_values"][0][0].shape[-1]
        if is_whole(pinpoints, side):
            return self.image_token * self.tokens_per_view
        in_prompts = image_inputs.get("batch_num_images")  # OneVision's: of several pictures in a prompt none is tiled
        counts = count_all_views(image_inputs["image_sizes"], pinpoints, side, in_prompts)
        return self.image_token * count_tokens(counts[image_idx], self.tokens_per_view)

    def replace_video_token(self, video_inputs: dict, video_idx: int = 0, **options: Any) -> str:
        """Write a video's tokens: T a frame."""
        frames = len(video_inputs["pixel_values_videos"][video_idx])
        return self.video_token * (frames * self.tokens_per_view + self.newlines_per_video)


class SparseFormerLlavaNextConfig(LlavaNextConfig):
    """Configuration of a LLaVA-NeXT whose vision tower is a SparseFormer."""

    model_type = "sparseformer_llava_next"


class SparseFormerLlavaNextModel(_FlatModel, LlavaNextModel):
    """The same without the head that writes words."""

    config: SparseFormerLlavaNextConfig


class SparseFormerLlavaNextForConditionalGeneration(LlavaNextForConditionalGeneration):
    """A LLaVA-NeXT whose vision tower is a SparseFormer."""

    config: SparseFormerLlavaNextConfig

    def __init__(self, config: SparseFormerLlavaNextConfig) -> None:
        super().__init__(config)
        self.model.__class__ = SparseFormerLlavaNextModel  # as a swap does to one that is loaded


class SparseFormerLlavaNextProcessor(_FlatProcessor, LlavaNextProcessor):
    """Its processor."""


class SparseFormerLlavaNextVideoConfig(LlavaNextVideoConfig):
    """Configuration of a LLaVA-NeXT-Video whose vision tower is a SparseFormer."""

    model_type = "sparseformer_llava_next_video"


class SparseFormerLlavaNextVideoModel(_FlatModel, LlavaNextVideoModel):
    """The same without the head that writes words."""

    config: SparseFormerLlavaNextVideoConfig

    @property
    def vision_resampler(self) -> Callable[[Tensor], Tensor]:
        """Pools the grid of a frame's patches in the stock model; latents (F, T, D) go on as they are."""
        return _as_they_are


def _as_they_are(tokens: Tensor) -> Tensor:
    return tokens


class SparseFormerLlavaNextVideoForConditionalGeneration(LlavaNextVideoForConditionalGeneration):
    """A LLaVA-NeXT-Video whose vision tower is a SparseFormer."""

    config: SparseFormerLlavaNextVideoConfig

    def __init__(self, config: SparseFormerLlavaNextVideoConfig) -> None:
        config.vision_config.patch_size = config.vision_config.image_size  # the stock resampler asks for its grid
        super().__init__(config)
        del config.vision_config.patch_size
        self.model.__class__ = SparseFormerLlavaNextVideoModel


class SparseFormerLlavaNextVideoProcessor(_FlatProcessor, LlavaNextVideoProcessor):
    """Its processor."""


class SparseFormerLlavaOnevisionConfig(LlavaOnevisionConfig):
    """Configuration of a LLaVA-OneVision whose vision tower is a SparseFormer."""

    model_type = "sparseformer_llava_onevision"


class SparseFormerLlavaOnevisionModel(_FlatModel, LlavaOnevisionModel):
    """The same without the head that writes words."""

    config: SparseFormerLlavaOnevisionConfig

    def apply_pooling(self, image_features: Tensor) -> Tensor:
        """Pool the grid of a frame's patches in the stock model; latents (F, T, W) go on as they are."""
        return image_features


class SparseFormerLlavaOnevisionForConditionalGeneration(LlavaOnevisionForConditionalGeneration):
    """A LLaVA-OneVision whose vision tower is a SparseFormer."""

    config: SparseFormerLlavaOnevisionConfig

    def __init__(self, config: SparseFormerLlavaOnevisionConfig) -> None:
        super().__init__(config)
        self.model.__class__ = SparseFormerLlavaOnevisionModel


class SparseFormerLlavaOnevisionProcessor(_FlatProcessor, LlavaOnevisionProcessor):
    """Its processor."""

    num_image_tokens: int
    newlines_per_video = 1

    @property
    def tokens_per_view(self) -> int:
        """T."""
        return self.num_image_tokens - (self.vision_feature_select_strategy == "default")


class Flat(NamedTuple):
    """The classes that a model, the model inside, their configuration and the processor become."""

    model: type
    inner: type
    config: type
    processor: type


LLAVA_NEXT = Flat(
    SparseFormerLlavaNextForConditionalGeneration,
    SparseFormerLlavaNextModel,
    SparseFormerLlavaNextConfig,
    SparseFormerLlavaNextProcessor,
)
LLAVA_NEXT_VIDEO = Flat(
    SparseFormerLlavaNextVideoForConditionalGeneration,
    SparseFormerLlavaNextVideoModel,
    SparseFormerLlavaNextVideoConfig,
    SparseFormerLlavaNextVideoProcessor,
)
LLAVA_ONEVISION = Flat(
    SparseFormerLlavaOnevisionForConditionalGeneration,
    SparseFormerLlavaOnevisionModel,
    SparseFormerLlavaOnevisionConfig,
    SparseFormerLlavaOnevisionProcessor,
)


def register() -> None:
    """Make saved directories known to transformers, and the names under which their stock models' weights are saved."""
    for flat in (LLAVA_NEXT, LLAVA_NEXT_VIDEO, LLAVA_ONEVISION):
        _register(flat)


def _register(flat: Flat) -> None:
    AutoConfig.register(flat.config.model_type, flat.config, exist_ok=True)  # type: ignore[attr-defined]
    AutoModel.register(flat.config, flat.inner, exist_ok=True)
    AutoModelForImageTextToText.register(flat.config, flat.model, exist_ok=True)
    AutoProcessor.register(flat.config, flat.processor, exist_ok=True)
    for own, stock in (
        (flat.config.model_type, flat.config.__base__.model_type),  # type: ignore[attr-defined, union-attr]
        (flat.inner.__name__, flat.inner.__bases__[-1].__name__),
    ):
        if (names := get_checkpoint_conversion_mapping(stock)) is not None:
            register_checkpoint_conversion_mapping(own, names, overwrite=True)
