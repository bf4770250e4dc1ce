"""SparseFormer v1: an image classifier that reads by a few latent tokens, whose regions of interest move as it reads.

Letters: B images or clips, S pixels, F frames, N latents, D width, I iterations, P points, A axes (2; 3 in clips).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from sf_llava.model.cortex import TransformerBlock
from sf_llava.model.early_conv import EarlyConvolution
from sf_llava.model.image_processor import save_image_processor
from sf_llava.model.initialisation import init_layer
from sf_llava.model.precision import KeepsFloat32, empty_float32
from sf_llava.model.rois import initial_offsets, initial_rois
from sf_llava.model.sparseformer import SparseFormerOutput
from sf_llava.model.v1.blocks import AdaptiveMixing, ReadingBlock
from sf_llava.model.v1.configuration import MLP_RATIO, SparseFormerV1Config
from sf_llava.ops import add_zero_border, place_points, prepare_map


class FocusingTransformer(KeepsFloat32):
    """Where latents start, an embedding and a RoI each, and the block that is repeated."""

    def __init__(self, config: SparseFormerV1Config) -> None:
        super().__init__()
        self.initial_rois = empty_float32(config.num_latents, 2 * config.num_axes)
        self.latent_embedding = empty_float32(config.num_latents, config.focusing_size)
        self.block = ReadingBlock(config, config.focusing_size)


class SparseFormerV1Model(PreTrainedModel):
    """The SparseFormer of before the bootstrapping, trained with labels; of pictures, or of clips of frames.

    Unlike the bootstrapped ones it has no CLS (the mean of the latents is classified), no position encoding and no
    stage embedding; every latent has its own embedding, and blocks attend before they read.
    """

    config_class = SparseFormerV1Config
    base_model_prefix = "sparseformer"
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    _keep_in_fp32_modules_strict = ["initial_rois", "offset_bias", "latent_embedding"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: SparseFormerV1Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.early_conv = EarlyConvolution(config.conv_channels)
        self.focusing = FocusingTransformer(config)
        self.transition = nn.Linear(config.focusing_size, width)
        self.transition_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        shape = config, width, config.num_attention_heads, MLP_RATIO * width, "gelu", config.layer_norm_eps
        others = [TransformerBlock(*shape) for _ in range(config.num_hidden_layers - 1)]
        self.cortex = nn.ModuleList([ReadingBlock(config, width), *others])
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(width, config.num_classes)
        self.post_init()

    def forward(self, pixel_values: Tensor, output_sampling_points: bool = False) -> SparseFormerOutput:
        """Classify images or clips.

        Args:
            pixel_values: (B, 3, S, S) normalised pixels; of clips (B, F, 3, S, S).
            output_sampling_points: return the points of the last sampling.

        Returns:
            ``logits`` (B, classes); ``pooler_output``, the normalised mean of the latents, and as ``image_embeds``
            (B, D); ``last_hidden_state`` (B, N, D), the latents; ``rois`` (B, I + 1, N, 2 A), those that the I
            iterations and the cortex read under, the first ones alike for all images; ``sampling_points``
            (B, N, P, A), float32 like the RoIs, where asked for. Corners and points are fractions of image and clip.

        Raises:
            ValueError: another number of dimensions.
        """
        if pixel_values.dim() != (5 if self.config.is_video else 4):
            expected = "clips (B, F, 3, S, S)" if self.config.is_video else "images (B, 3, S, S)"
            raise ValueError(f"expected {expected}, got {tuple(pixel_values.shape)}")
        features = self._extract(pixel_values.to(self.early_conv.conv.weight.dtype))
        tokens = self.focusing.latent_embedding.to(features.dtype)[None]  # [1, N, d]
        features = prepare_map(features)
        rois, history = self.focusing.initial_rois[None], []
        for _ in range(self.config.num_focusing_iterations):
            tokens, rois, offsets = self.focusing.block(tokens, features, rois)
            history.append(rois)
        tokens = self.transition_norm(self.transition(tokens))
        tokens, rois, offsets = self.cortex[0](tokens, features, rois)
        for block in self.cortex[1:]:
            tokens = block(tokens)
        pooled = self.norm(tokens.mean(dim=1))
        return SparseFormerOutput(
            image_embeds=pooled,
            logits=self.classifier(pooled),
            last_hidden_state=tokens,
            pooler_output=pooled,
            rois=torch.stack([*history, rois], dim=1),
            sampling_points=place_points(rois, offsets) if output_sampling_points else None,
        )

    def _extract(self, pixel_values: Tensor) -> Tensor:
        """Give the feature maps of images, with a border of zeros, or of clips, frame by frame."""
        if not self.config.is_video:
            return add_zero_border(self.early_conv(pixel_values))
        return self.early_conv(pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])  # [B, F, H, W, C]

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save weights and configuration as every model of transformers does, and the image processor beside them."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            save_image_processor(self.config, save_directory, kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module; zero-initialised heads leave RoIs and sampling grids as they start."""
        init_layer(module, self.config.initializer_range)
        if isinstance(module, FocusingTransformer):
            low, high = initial_rois(self.config.num_latents).chunk(2, dim=1)
            time = low.new_zeros(len(low), self.config.num_axes - 2)  # in clips a RoI starts with all frames
            init.copy_(module.initial_rois, torch.cat([low, time, high, time + 1], dim=1))
            init.trunc_normal_(module.latent_embedding, std=1.0)
        elif isinstance(module, AdaptiveMixing):
            init.zeros_(module.channel_bias)
            init.zeros_(module.point_bias)
        elif isinstance(module, ReadingBlock):
            offsets = initial_offsets(self.config.num_sampling_points)
            time = offsets.new_zeros(len(offsets), self.config.num_axes - 2)
            init.copy_(module.offset_bias, torch.cat([offsets, time], dim=1).flatten())
            init.zeros_(module.offsets.weight)
            init.zeros_(module.roi_deltas.weight)
