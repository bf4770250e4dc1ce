"""SparseFormer: an image read by a few latent tokens whose regions of interest move to what matters.

Paper: Bootstrapping SparseFormers from Vision Foundation Models (CVPR 2024);
architecture first in SparseFormer: Sparse Visual Recognition via Limited Latent Tokens (ICLR 2024).
Letters: B images, S pixels, N latents, T tokens (CLS first where there is one, then N latents), D width, E embedding,
I iterations, P points.
"""

import copy
import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model.cortex import CortexBlock
from sf_llava.model.early_conv import EarlyConvolution
from sf_llava.model.focusing import FocusingTransformer, SamplingBlock
from sf_llava.model.image_processor import save_image_processor
from sf_llava.model.initialisation import init_layer
from sf_llava.model.pooling import AttentionPooling
from sf_llava.model.rois import initial_offsets, initial_rois
from sf_llava.ops import place_points

OPTIONS = ("num_latents", "output_features", "output_hidden_states", "output_sampling_points", "return_dict")
MISSPELT = 0.78
"""Names this similar to an option are taken for it, misspelt; no keyword of transformers is."""


@dataclass
class SparseFormerOutput(ModelOutput):
    """What a :class:`SparseFormerModel` returns.

    Attributes:
        image_embeds: (B, E) aligned with the teacher's embedding, not normalised: after the projection for CLIP
            students, ``pooler_output`` where there is no projection.
        logits: (B, classes) of the inherited classifier, for AugReg students only.
        last_hidden_state: (B, T, D) tokens after the last cortex block, CLS first, before the final norm, where hidden
            states are asked for; otherwise the last block computes CLS alone.
        pooler_output: (B, D) CLS after the final norm; without CLS what attention pools of the latents after it.
        hidden_states: cortex input and the output of every block, each (B, T, D), where asked for; None in place of
            layers that were not.
        rois: (B, I + 1, N, 4) RoIs before the first and after every iteration, corners as image fractions, float32.
        sampling_points: (B, N, P, 2) points of the last sampling as image fractions, float32, where asked for.
        features: (B, H/4, W/4, C) the early convolution's map, channels last, where asked for.
    """

    image_embeds: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    rois: Tensor | None = None
    sampling_points: Tensor | None = None
    features: Tensor | None = None


class SparseFormerModel(PreTrainedModel):
    """The SparseFormer encoder, a vision tower of transformers."""

    config_class = SparseFormerConfig
    base_model_prefix = "sparseformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # What stays whole on one device, and the units of FSDP: those after the first two keep float32 apart from the rest.
    _no_split_modules = [  # noqa: RUF012 (transformers' interface)
        "FocusingTransformer",
        "CortexBlock",
        "FocusingBlock",
        "SamplingBlock",
        "AdaptiveMixing",
        "ShardedLinear",
        "ShardedLayerNorm",
    ]
    # The parameters of the modules that are a KeepsFloat32.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        "initial_rois",
        "offset_bias",
        "latent_embedding",
        "stage_embedding",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__(config)
        self.early_conv = EarlyConvolution(config.conv_channels)
        self.focusing = FocusingTransformer(config)
        if config.use_cls:
            self.cls_token = nn.Parameter(torch.empty(config.hidden_size))
        self.cortex = nn.ModuleList([CortexBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.cortex_layer_norm_eps)
        if not config.use_cls:
            self.pool = AttentionPooling(config)
        if config.projection_dim:
            self.projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        if config.num_classes:
            self.classifier = nn.Linear(config.hidden_size, config.num_classes)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_sampling_points: bool = False,
        return_dict: bool | None = None,
        num_latents: int | None = None,
        output_features: bool = False,
        **kwargs: Any,
    ) -> SparseFormerOutput | tuple:
        """Read images.

        Args:
            pixel_values: (B, 3, S, S) normalised pixels; (B, 3, H, W) works as well.
            output_hidden_states: True for all hidden states of the cortex; a layer (LLaVA's ``-2``) or several for
                those alone, counted as in ``hidden_states``. Blocks beyond the last layer named are not computed, and
                then nothing that needs them is returned. Default: the configuration's.
            output_sampling_points: return the points of the last sampling.
            return_dict: a tuple comes back where this is False. Default: the configuration's.
            num_latents: N of this call, for an elastic encoder; one that is not the configuration's starts on the
                balanced grid. Default: the configuration's.
            output_features: return the early convolution's map, as dense prediction reads it.
            kwargs: what hosts hand down to every part of a model (transformers' ``TransformersKwargs``: the number of
                items in the batch, ``output_attentions`` for their own layers, ...), ignored.

        Raises:
            TypeError: a keyword that is one of these options misspelt.
            ValueError: a layer that the cortex does not have, or a number of latents that was not trained.
        """
        if num_latents is not None:
            self.config.check_num_latents(num_latents)
        if kwargs and not torch.compiler.is_compiling():
            _refuse_misspelt(kwargs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        layers = _layers_to_keep(output_hidden_states, len(self.cortex))
        features = self.early_conv(pixel_values.to(self.early_conv.conv.weight.dtype))
        focus = self.focusing(features, num_latents)
        starting_tokens = focus.latents
        if self.config.use_cls:
            starting_tokens = torch.cat([self.cls_token.expand(features.shape[0], 1, -1), starting_tokens], dim=1)
        tokens, hidden_states = self._run_cortex(starting_tokens, layers)
        pooled = None if tokens is None else self._pool(tokens)
        output = SparseFormerOutput(
            image_embeds=self.projection(pooled) if pooled is not None and self.config.projection_dim else pooled,
            logits=self.classifier(pooled) if pooled is not None and self.config.num_classes else None,
            last_hidden_state=tokens if layers else None,
            pooler_output=pooled,
            hidden_states=hidden_states if layers else None,
            rois=focus.rois,
            sampling_points=place_points(focus.rois[:, -1], focus.offsets) if output_sampling_points else None,
            features=features if output_features else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _run_cortex(self, tokens: Tensor, layers: set[int]) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        """Run the cortex on tokens (B, T, D) as far as it is needed.

        Args:
            tokens: CLS, where there is one, and latents.
            layers: hidden states to keep; without any, the last block computes CLS alone, where there is one.

        Returns:
            The last block's output, (B, T, D) or (B, 1, D), None where it was not reached; the hidden states.
        """
        depth = len(self.cortex)
        last_layer = max(layers, default=depth)
        cls_alone = self.config.use_cls and not layers
        hidden_states = [tokens if 0 in layers else None]
        for layer, block in enumerate(itertools.islice(self.cortex, last_layer), start=1):
            tokens = block(tokens, num_updated=1 if layer == depth and cls_alone else None)
            hidden_states.append(tokens if layer in layers else None)
        hidden_states += [None] * (depth - last_layer)
        return tokens if last_layer == depth else None, tuple(hidden_states)

    def _pool(self, tokens: Tensor) -> Tensor:
        """Make one vector (B, D) of the last block's tokens."""
        return self.norm(tokens[:, 0]) if self.config.use_cls else self.pool(self.norm(tokens))

    def with_num_latents(self, num_latents: int) -> "SparseFormerModel":
        """Give an elastic encoder with another number of latents in its configuration; both share their weights.

        Raises:
            ValueError: a number that was not trained.
        """
        self.config.check_num_latents(num_latents)
        if num_latents == self.config.num_latents:
            return self
        other = copy.deepcopy(self, {id(shared): shared for shared in (*self.parameters(), *self.buffers())})
        start = self.focusing.initial_rois
        rois = initial_rois(num_latents).to(start.device)
        other.focusing.initial_rois = nn.Parameter(rois, requires_grad=start.requires_grad)
        other.config.num_latents = num_latents
        return other

    def get_input_embeddings(self) -> EarlyConvolution:
        """Give what embeds the input: adapters ask its output for gradients, which checkpointed layers need."""
        return self.early_conv

    def set_input_embeddings(self, value: EarlyConvolution) -> None:
        self.early_conv = value

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
            init.copy_(module.initial_rois, initial_rois(self.config.num_latents))
            init.trunc_normal_(module.latent_embedding, std=1.0)
            init.normal_(module.stage_embedding)
            _init_unit_norm(module.block.roi_norm)
            init.zeros_(module.block.roi_deltas.weight)
        elif isinstance(module, SamplingBlock):
            init.copy_(module.offset_bias, initial_offsets(self.config.num_sampling_points).flatten())
            _init_unit_norm(module.offset_norm)
            init.zeros_(module.offsets.weight)
            _init_unit_norm(module.mixing.norm)
            init.zeros_(module.mixing.generate.weight)
            init.copy_(module.mixing.generate.bias, self._mixing_bias())
        elif isinstance(module, AttentionPooling):
            init.normal_(module.query)
        elif module is self and self.config.use_cls:
            init.normal_(module.cls_token)

    def _mixing_bias(self) -> Tensor:
        """Draw the initial mixing matrices, Xavier-uniform: channels (C, C), then points (Q, P), flattened."""
        config = self.config
        channel_mixing = torch.empty(config.conv_channels, config.conv_channels)
        point_mixing = torch.empty(config.mixing_points, config.num_sampling_points)
        matrices = [nn.init.xavier_uniform_(matrix).flatten() for matrix in (channel_mixing, point_mixing)]
        return torch.cat(matrices)


def _refuse_misspelt(kwargs: dict[str, Any]) -> None:
    """Raise TypeError where an unknown keyword is plainly meant for one of ``OPTIONS``."""
    for name in kwargs:
        if meant := difflib.get_close_matches(name, OPTIONS, n=1, cutoff=MISSPELT):
            raise TypeError(f"unknown option {name!r}: did you mean {meant[0]}? Known options: {', '.join(OPTIONS)}")


def _layers_to_keep(wanted: bool | int | Sequence[int] | None, depth: int) -> set[int]:
    """Turn what was asked for into layers 0 .. depth; none where no hidden state was asked for."""
    if wanted is None or isinstance(wanted, bool):
        return set(range(depth + 1)) if wanted else set()
    layers = [wanted] if isinstance(wanted, int) else wanted
    if not isinstance(layers, (list, tuple)) or not all(isinstance(layer, int) for layer in layers):
        raise ValueError(f"output_hidden_states must be True, False, a layer or a list of layers, not {wanted!r}")
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ValueError(f"no hidden state {layer}: the cortex has {depth} blocks, layers {-depth - 1} to {depth}")
    return {layer % (depth + 1) for layer in layers}


def _init_unit_norm(norm: nn.LayerNorm) -> None:
    """Scale a layer norm so that its output starts with unit length."""
    init.constant_(norm.weight, norm.normalized_shape[0] ** -0.5)
