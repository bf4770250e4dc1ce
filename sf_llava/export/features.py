"""What an exported file computes: an encoder's embedding, the tokens that a LLaVA reads, those projected for its LLM.

Letters: B images, S pixels, E embedding, T tokens (N latents, CLS first where it is kept), D width, W width of the LLM.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sf_llava.llava.fitting import check_fit, find_interface, find_layers
from sf_llava.llava.host import find_llava, refuse_tiles
from sf_llava.llava.reading import strategy_of
from sf_llava.model import SparseFormerModel

EMBEDDING, FEATURES = "image_embeds", "image_features"
"""Names of an exported file's output, those of transformers."""


class ImageFeatures(nn.Module):
    """From pixels (B, 3, S, S) to the one output of an exported file.

    Args:
        encoder: a SparseFormer.
        layers: hidden states of its cortex whose tokens are given, one behind the other along the channels; none for
            the embedding.
        keep_cls: give CLS before the latents, of an encoder that has one.
        projector: applied to the tokens.

    Raises:
        ValueError: a layer that the cortex does not have.
    """

    def __init__(
        self,
        encoder: SparseFormerModel,
        layers: Sequence[int] = (),
        keep_cls: bool = False,
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        known = encoder.config.hidden_state_layers
        for layer in layers:
            if layer not in known:
                raise ValueError(
                    f"`layer` {layer}: the encoder has hidden states {known[0]} to {known[-1]} (its cortex input and "
                    f"{known[-1]} blocks); LLaVA reads -2"
                )
        self.encoder, self.layers, self.keep_cls, self.projector = encoder, list(layers), keep_cls, projector

    @classmethod
    def of_llava(cls, model: Any, encoder: SparseFormerModel) -> "ImageFeatures":
        """Give what a LLaVA's LLM reads of a picture with ``encoder`` as the tower: (B, T, W).

        Raises:
            ValueError: no LLaVA of transformers, one that cuts pictures into tiles, or an encoder that does not fit it.
        """
        model = find_llava(model)
        refuse_tiles(model, "an exported file of what the LLM reads of a picture")
        check_fit(encoder, model.config, find_interface(model).width)
        return cls(
            encoder,
            find_layers(encoder.config, model.config),
            encoder.config.use_cls and strategy_of(model.config) == "full",
            model.model.multi_modal_projector,
        )

    @property
    def output_name(self) -> str:
        """``EMBEDDING`` or ``FEATURES``."""
        return FEATURES if self.layers else EMBEDDING

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Give the embedding (B, E), tokens (B, T, D), or projected tokens (B, T, W)."""
        if not self.layers:
            return self.encoder(pixel_values).image_embeds
        states = self.encoder(pixel_values, output_hidden_states=self.layers).hidden_states
        tokens = torch.cat([states[layer] for layer in self.layers], dim=-1)
        tokens = tokens[:, 1:] if self.encoder.config.use_cls and not self.keep_cls else tokens
        return tokens if self.projector is None else self.projector(tokens)
