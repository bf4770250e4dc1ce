"""A 4-bit or 8-bit LLM beside a whole vision tower and projector (bitsandbytes, optional)."""

import torch
from transformers import BitsAndBytesConfig

from sf_llava.extras import require

# Anchored at the full path: "vision_tower" alone would skip nothing.
WHOLE = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def quantisation_config(bits: int, compute_dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """Describe a LLaVA with its LLM in 4 (nf4) or 8 bits, for ``from_pretrained(quantization_config=...)``.

    Raises:
        ValueError: another number of bits.
        ModuleNotFoundError: bitsandbytes is not installed.
    """
    require(f"an LLM in {bits} bits", "bitsandbytes")
    if bits == 4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=list(WHOLE),
        )
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(WHOLE))
    raise ValueError(f"an LLM can be loaded in 4 or 8 bits, not {bits}")
