"""A SparseFormer behind the llava package's tower contract, without importing that package.

The package builds a tower from its name and arguments, asks it for ``hidden_size``, ``num_patches``, ``config`` and an
``image_processor``, and calls it on stacked images. :mod:`sf_llava.llava.package.install` installs this class there.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessor  # the package's own image processor, in its own version

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava.reading import Reading
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import find_encoder

PREFIX = "sparseformer:"


class SparseFormerVisionTower(nn.Module):
    """The vision tower ``sparseformer:DIR`` of a LLaVA of the original package.

    Args:
        vision_tower: ``sparseformer:DIR`` or ``DIR``, the directory of an encoder or its run.
        args: the package's config or arguments: ``mm_vision_select_layer``, ``mm_vision_select_feature`` (``patch`` by
            default) and ``unfreeze_mm_vision_tower`` are read.
        delay_load: read only the config; :meth:`load_model` reads the weights.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        self.is_loaded = False
        self.vision_tower_name = vision_tower
        self.directory = find_encoder(vision_tower.removeprefix(PREFIX))
        self.select_layer = args.mm_vision_select_layer
        self.select_feature = getattr(args, "mm_vision_select_feature", "patch")
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"unknown mm_vision_select_feature {self.select_feature!r}; known: patch, cls_patch")
        self._config = SparseFormerConfig.from_pretrained(self.directory)
        if self.select_feature == "cls_patch" and not self._config.use_cls:
            raise ValueError(
                f"mm_vision_select_feature is cls_patch but the encoder in {self.directory} has no CLS: expected patch"
            )
        known = self._config.hidden_state_layers
        if self.select_layer not in known:
            raise ValueError(
                f"mm_vision_select_layer is {self.select_layer} but the encoder in {self.directory} has {known.stop} "
                f"hidden states (its input and {known[-1]} layers)"
            )
        expected = getattr(args, "mm_hidden_size", None)
        if expected not in (None, self._config.hidden_size):
            raise ValueError(
                f"the projector takes {expected} channels (mm_hidden_size) but the encoder in {self.directory} gives "
                f"{self._config.hidden_size}: bootstrap an encoder from the tower that this LLaVA was trained with"
            )
        self.image_processor = self._build_image_processor()
        if not delay_load or getattr(args, "unfreeze_mm_vision_tower", False):
            self.load_model()

    def _build_image_processor(self) -> CLIPImageProcessor:
        side = self._config.image_size
        square = {"height": side, "width": side}
        return CLIPImageProcessor(
            size=square if self._config.resize_mode == "squash" else {"shortest_edge": side},
            crop_size=square,
            image_mean=list(self._config.image_mean),
            image_std=list(self._config.image_std),
        )

    def load_model(self, device_map: Any = None) -> None:
        """Read the weights, frozen; a second call changes nothing.

        Args:
            device_map: what the package passes on: None, ``auto``, a device, or ``{"": device}``.
        """
        if self.is_loaded:
            return
        if nn.Linear(1, 1).weight.is_meta:  # the package's loader will fill an unfrozen tower from its own file
            encoder = SparseFormerModel(self._config)
        else:
            encoder = SparseFormerModel.from_pretrained(self.directory)
        device = device_map.get("") if isinstance(device_map, dict) else device_map
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.vision_tower = encoder.eval().requires_grad_(False)
        if device is not None:
            self.vision_tower.to(device)
        self.is_loaded = True

    @torch.no_grad()
    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Encode images (B, 3, S, S), or a list of (3, S, S), into tokens in the images' dtype.

        Returns:
            (B, T, D) with T = ``num_patches``, one more with CLS; for a list, a list of (1, T, D).
        """
        if not isinstance(images, Tensor):
            return [self(image.unsqueeze(0)) for image in images]
        states = self.vision_tower(
            images.to(device=self.device, dtype=self.dtype), output_hidden_states=self.select_layer
        ).hidden_states
        reading = Reading(self.select_layer, self.select_feature == "cls_patch", has_cls=self.config.use_cls)
        return reading.select(states[self.select_layer]).tokens.to(images.dtype)

    @property
    def dummy_feature(self) -> Tensor:
        """One token of zeros."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.norm.weight.device

    @property
    def config(self) -> SparseFormerConfig:
        return self.vision_tower.config if self.is_loaded else self._config

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_patches(self) -> int:
        """Number of latents."""
        return self.config.num_latents

    @property
    def num_patches_per_side(self) -> int:
        """Side of the grid that anyres and spatial merging lay tokens on.

        Raises:
            ValueError: the number of latents is no square.
        """
        side = math.isqrt(self.num_patches)
        if side**2 != self.num_patches:
            raise ValueError(
                f"anyres and spatial merging lay tokens on a square grid, but the encoder has {self.num_patches} "
                "latents: use image_aspect_ratio 'pad' or None with mm_patch_merge_type 'flat'"
            )
        return side
