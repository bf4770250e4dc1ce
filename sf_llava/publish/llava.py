"""What a published LLaVA is where this package is not: transformers' LLaVA, whose config knows a SparseFormer.

A copy of this file lies in the directory, and ``trust_remote_code=True`` lets transformers import it. Nothing is
registered under the name ``sparseformer``: beside the package its own classes stay what they were.
"""

from typing import Any

from transformers import AutoModel, LlavaConfig, LlavaForConditionalGeneration, LlavaModel

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model.sparseformer import SparseFormerModel


class SparseFormerLlavaConfig(LlavaConfig):
    """Configuration of a LLaVA whose vision tower is a SparseFormer."""

    def __init__(self, vision_config: Any = None, **kwargs: Any) -> None:
        if isinstance(vision_config, dict):
            vision_config = SparseFormerConfig.from_dict(vision_config)
        super().__init__(vision_config=vision_config, **kwargs)


class SparseFormerLlavaModel(LlavaModel):
    """The same without the head that writes words."""

    config: SparseFormerLlavaConfig


class SparseFormerLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """A LLaVA whose vision tower is a SparseFormer."""

    config: SparseFormerLlavaConfig


AutoModel.register(SparseFormerConfig, SparseFormerModel, exist_ok=True)
