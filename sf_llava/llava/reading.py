"""The one way from a tower's hidden states to what a LLaVA's LLM reads: layer, CLS, order, positions, bias.

A LLaVA reads one hidden state of its tower, with or without CLS. M patches stand in raster order. N latents are read as
they come, or by RoI centre:

    order      latents stand in raster order of the patch that their last RoI's centre falls on
    positions  each has the position id of that patch; the text behind starts where it started in training
    bias       log(M / N) is added to the attention scores from text to latents, as if each stood for M / N patches

With N = M latents, one on each patch, the second is the first. Evaluation, chat, training and the original package's
tower all read through here; nothing here imports transformers.

Letters: B prompts, L prompt tokens, I images, N latents, M patches, T image tokens (N, one more with CLS), D width of
the tower, W width of the LLM.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

WITHOUT_CLS = ("siglip_vision_model", "siglip2_vision_model")
"""``model_type`` of transformers' vision towers that have none."""


class Tokens(NamedTuple):
    """What is read of images: ``tokens`` (I, T, D), and their ``places`` (I, T) int64 among CLS, if read, and the M
    patches; None where tokens are read as they come."""

    tokens: Tensor
    places: Tensor | None


@dataclass(frozen=True)
class Reading:
    """How a LLaVA reads its tower.

    Attributes:
        layer: which hidden state, counted from the end if negative.
        with_cls: whether CLS is read too.
        num_patches: M of the tower that the LLM was trained with, to read latents by RoI centre; None: as they come.
        has_cls: whether the tower's tokens begin with CLS.
    """

    layer: int
    with_cls: bool
    num_patches: int | None = None
    has_cls: bool = True

    def select(self, states: Tensor, rois: Tensor | None = None) -> Tokens:
        """Take what the LLM reads out of the hidden state ``layer``.

        Args:
            states: (I, 1 + T, D), CLS first; (I, T, D) of a tower without.
            rois: (I, N, 4) the last RoIs, corners as image fractions; needed by RoI centre.
        """
        if self.num_patches is None:
            return Tokens(states if self.with_cls or not self.has_cls else states[:, 1:], None)
        assert rois is not None, "reading by RoI centre needs RoIs"
        places, order = find_patches(rois, self.num_patches).sort(dim=1, stable=True)  # [I, N]
        cls, latents = states.split([int(self.has_cls), order.shape[1]], dim=1)
        tokens = latents.take_along_dim(order[..., None], dim=1)  # [I, N, D]
        if not self.with_cls:
            return Tokens(tokens, places)
        return Tokens(torch.cat([cls, tokens], dim=1), torch.cat([torch.zeros_like(places[:, :1]), places + 1], dim=1))

    def bias(self, num_latents: int) -> float:
        """What is added to the attention scores from text to each of N latents: log(M / N)."""
        assert self.num_patches is not None, "latents that are read as they come have no bias"
        return math.log(self.num_patches / num_latents)

    def count_positions(
        self, image: Tensor, attended: Tensor, places: Iterable[Tensor], spans: Iterable[int] | None = None
    ) -> Tensor:
        """Count the position ids of prompts whose pictures are read by RoI centre.

        A word takes one; a picture as many as it took in training, in which its tokens stand at their places.

        Args:
            image: (B, L) bool, which tokens are a picture's.
            attended: (B, L) bool, which are no padding.
            places: (T,) for each picture, as of :meth:`select`, in the order of the pictures in the prompts.
            spans: how many positions each took; None: as many as the tower's tokens that are read.

        Returns:
            (B, L) int64.
        """
        assert self.num_patches is not None, "tokens that are read as they come are counted by the model itself"
        spans = repeat(self.num_patches + self.with_cls) if spans is None else spans
        rows, pictures = [], zip(places, spans, strict=False)
        for is_image, is_attended in zip(image.tolist(), attended.tolist(), strict=True):
            row: list[int] = []
            position, start, inside = 0, 0, iter(list[int]())
            for pictured, real in zip(is_image, is_attended, strict=True):
                if not pictured:
                    row.append(position)
                    position += real
                    continue
                if (place := next(inside, None)) is None:  # the next picture begins
                    own, taken = next(pictures)
                    start, inside = position, iter(own.tolist())
                    position, place = start + taken, next(inside)
                row.append(start + place)
            rows.append(row)
        return torch.tensor(rows, device=image.device)


def reading_of(model: "LlavaForConditionalGeneration", num_patches: int | None = None) -> Reading:
    """Say how a LLaVA reads its tower, by its config.

    Args:
        model: a LLaVA.
        num_patches: M of the tower that its LLM was trained with, to read latents by RoI centre.

    Raises:
        ValueError: the tower is read at several layers.
    """
    layers = layers_read(model.config)
    if len(layers) > 1:
        raise ValueError(f"expected a LLaVA that reads its tower at one vision_feature_layer, not {layers}")
    cls = has_cls(model.config.vision_config)
    return Reading(layers[0], cls and strategy_of(model.config) == "full", num_patches, cls)


def layer_field(config: Any) -> str:
    """Name the field of a LLaVA's config that says at which hidden states its tower is read."""
    return "vision_feature_layer" if hasattr(config, "vision_feature_layer") else "vision_feature_layers"  # VipLLaVA's


def layers_read(config: Any) -> list[int]:
    """Give the numbers of the hidden states at which a LLaVA reads its tower, in its order."""
    layers = getattr(config, layer_field(config))
    return [layers] if isinstance(layers, int) else list(layers)


def blocks_read(config: Any) -> list[int]:
    """Count the blocks of a LLaVA's own tower in front of each hidden state that is read, however it is numbered."""
    depth = config.vision_config.num_hidden_layers
    return [layer if layer >= 0 else layer + depth + 1 for layer in layers_read(config)]


def strategy_of(config: Any) -> str:
    """Say whether a LLaVA reads CLS (``full``) or drops the first token (``default``, as VipLLaVA always does)."""
    return str(getattr(config, "vision_feature_select_strategy", "default"))


def has_cls(vision_config: Any) -> bool:
    """Tell from a tower's config whether its tokens begin with CLS: a SigLIP's do not, nor those of its students."""
    return getattr(vision_config, "use_cls", getattr(vision_config, "model_type", "") not in WITHOUT_CLS)


class Seen(NamedTuple):
    """Pictures as the LLM reads them: ``features`` (I, T, W), their ``places`` as in :class:`Tokens`, and what the
    tower gave beside, ``outputs`` (of a SparseFormer: ``rois``, ``sampling_points``)."""

    features: Tensor
    places: Tensor | None
    outputs: Any


def see(model: "LlavaForConditionalGeneration", pixel_values: Tensor, reading: Reading | None, **wanted: Any) -> Seen:
    """Let a LLaVA's tower look at pictures, and project what is read of them.

    Args:
        model: a LLaVA, not wrapped.
        pixel_values: (I, 3, S, S); (1, V, 3, S, S) of one picture that is cut into tiles, with its ``image_sizes``.
        reading: by RoI centre; None lets the model read its tower itself.
        wanted: further outputs of the tower, such as ``output_sampling_points``.

    Raises:
        ValueError: the tower has no RoIs to read by.
    """
    if reading is None:
        outputs = model.get_image_features(pixel_values, **wanted)
        features = outputs.pooler_output
        return Seen(features if isinstance(features, Tensor) else torch.stack(list(features)), None, outputs)
    tower = model.model.vision_tower
    outputs = tower(pixel_values, output_hidden_states=reading.layer, **wanted)
    if getattr(outputs, "rois", None) is None:
        raise ValueError(f"only a SparseFormer has RoIs to read by; the vision tower is {type(tower).__name__}")
    tokens, places = reading.select(outputs.hidden_states[reading.layer], outputs.rois[:, -1])
    return Seen(project(model, tokens), places, outputs)


def read_views(model: "LlavaForConditionalGeneration", pixel_values: Tensor) -> Tensor:
    """Read square views (I, 3, S, S), pictures or tiles of them, each by itself and as the tokens come: (I, T, W)."""
    states = model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    tokens = torch.cat([states[layer] for layer in layers_read(model.config)], dim=-1)
    return project(model, tokens[:, 1:] if strategy_of(model.config) == "default" else tokens)


def project(model: "LlavaForConditionalGeneration", tokens: Tensor) -> Tensor:
    """Project a tower's tokens (I, T, D) into the LLM's space, (I, T, W)."""
    return model.model.multi_modal_projector(tokens)


def boxes_of(places: Tensor, num_patches: int) -> Tensor:
    """Give the boxes of patches, whose centres :func:`find_patches` finds again.

    Args:
        places: (...) int64 in 0 .. M - 1, in raster order.
        num_patches: M, a square number.

    Returns:
        (..., 4) float32 corners as image fractions.
    """
    side = math.isqrt(num_patches)
    corners = torch.stack([places % side, places // side], dim=-1)  # x, y
    return torch.cat([corners, corners + 1], dim=-1) / side


def find_patches(rois: Tensor, num_patches: int) -> Tensor:
    """Find the patch that every RoI's centre falls on, the nearest one for a centre outside the image.

    Args:
        rois: (..., 4) corners as image fractions.
        num_patches: M, a square number.

    Returns:
        (...) int64 in 0 .. M - 1, in raster order.
    """
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(f"{num_patches} patches are no square grid, on which positions by RoI centre need them")
    cells = ((rois[..., :2] + rois[..., 2:]) / 2 * side).floor().clamp(0, side - 1).long()  # x, y
    return cells[..., 1] * side + cells[..., 0]
