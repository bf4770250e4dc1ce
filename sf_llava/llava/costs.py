"""What one picture costs a LLaVA before its first word: multiply-adds of the tower in place, and of the prefill.

Letters: T tokens that the LLM reads for a picture, W width of the LLM.
"""

from typing import NamedTuple

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.llava.tokens import encode_prompts
from sf_llava.model.costs import count_multiply_adds


class PictureCosts(NamedTuple):
    """Of one picture and a prompt: ``tokens`` T, and multiply-adds of ``tower`` and ``prefill``."""

    tokens: int
    tower: int
    prefill: int


@torch.no_grad()
def count_picture_costs(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, text_tokens: int
) -> PictureCosts:
    """Count what a LLaVA computes for one picture, with the tower that is in its place now; nothing is run.

    The tower is counted whole, as transformers runs it, for every view of a square picture; the prefill is the LLM's
    blocks over T + ``text_tokens`` tokens, attention as a full square, without the head. Projector and decoding are
    left out.

    Args:
        model: a LLaVA, not wrapped, on one device, in any precision.
        processor: its processor.
        text_tokens: of the prompt, those of the picture not counted.
    """
    inputs = encode_prompts(processor, [processor.image_token], [[Image.new("RGB", (8, 8))]])
    tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    views = inputs["pixel_values"].shape[:-3].numel()  # several of a picture that is cut into tiles
    if getattr(model.config.vision_config, "teacher_tiles", 1) > 1:
        views = 1
    tower = model.model.vision_tower
    seen = views * count_multiply_adds(tower, model.config.vision_config.image_size, output_hidden_states=True)
    config = model.config.get_text_config()
    with torch.device("meta"):
        llm = AutoModel.from_config(config).eval()
        length = tokens + text_tokens
        embeds = torch.empty(1, length, config.hidden_size, dtype=llm.dtype)
        mask = torch.empty(1, 1, length, length, dtype=llm.dtype)  # given whole, transformers looks into none
        with FlopCounterMode(display=False) as counter:
            llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    return PictureCosts(tokens, seen, counter.get_total_flops() // 2)
