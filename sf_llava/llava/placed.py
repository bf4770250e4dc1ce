"""A LLaVA that always reads its SparseFormer by RoI centre with the attention bias: in ``forward`` and ``generate``.

Its config says so by ``positions_and_bias``, the number of patches that its LLM was trained with, and
:func:`~sf_llava.load_llava` then gives this class. Every caller of transformers' own interface (``generate``, a
pipeline, a ``Trainer``) hears what :func:`~sf_llava.generate_in_place` says, and need not know of it. reading.py says
what positions and bias are.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from sf_llava.llava.hooks import weigh_latents
from sf_llava.llava.positions import embed, generate_behind_prompts
from sf_llava.llava.reading import Reading, reading_of

FIELD = "positions_and_bias"


class PlacedLlava(LlavaForConditionalGeneration):
    """A LLaVA whose vision tower is a SparseFormer, read by RoI centre with the attention bias.

    Calls with ``pixel_values`` take them with ``input_ids``; all others are those of the class it is derived from.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute logits; prompts with pictures are embedded and placed here.

        Raises:
            ValueError: pictures without ``input_ids``, or with ``position_ids``, which the pictures decide.
        """
        if pixel_values is None:
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )
        if input_ids is None or position_ids is not None:
            raise ValueError("this LLaVA places its pictures' tokens itself: give input_ids, and no position_ids")
        reading = self._reading()
        prompt = embed(self, {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values},
                       reading)  # fmt: skip
        with weigh_latents(self, prompt.latents, prompt.bias):
            return super().forward(
                inputs_embeds=prompt.inputs_embeds,
                attention_mask=attention_mask,
                position_ids=prompt.position_ids,
                **kwargs,
            )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate as transformers does, prompts included; errors as of ``generate_in_place``."""
        if kwargs.get("pixel_values") is None:
            return super().generate(inputs, **kwargs)
        prompts = {name: kwargs.pop(name, None) for name in ("input_ids", "attention_mask", "pixel_values")}
        if inputs is not None:
            prompts["input_ids"] = inputs
        return generate_behind_prompts(self, prompts, self._reading(), **kwargs)

    def _reading(self) -> Reading:
        return reading_of(self, getattr(self.config, FIELD))
